"""SmolVLM: see ``bases.idefics``."""

from typing import ClassVar

from torch import Tensor

from prunetune.families.bases.idefics import IdeficsLike


class SmolVLM(IdeficsLike):
    """``SmolVLMForConditionalGeneration``."""

    model_type: ClassVar[str] = "smolvlm"

    def real(self, views: Tensor) -> Tensor:
        """Of padding alone, one view is used."""
        real = super().real(views)
        real[0] |= ~real.any()
        return real
