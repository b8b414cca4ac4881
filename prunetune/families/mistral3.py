"""Mistral Small 3.1 and later: a Pixtral tower, 2 x 2 patches a token."""

from typing import ClassVar

from prunetune.families.bases.packed import PixtralLike


class Mistral3(PixtralLike):
    """``Mistral3ForConditionalGeneration``."""

    model_type: ClassVar[str] = "mistral3"

    @property
    def merge(self) -> int:
        """Side of the blocks that the patch merger takes."""
        return int(self.config.spatial_merge_size)
