"""Qwen3-VL: as Qwen2-VL, with features of earlier tower blocks added behind the first layers."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from prunetune.families.base import Survivors
from prunetune.families.base_configs import SIGLIP_PIXELS
from prunetune.families.base_qwen import QwenVL

METHOD = "_deepstack_process"


class Qwen3VL(QwenVL):
    """``Qwen3VLForConditionalGeneration`` with DeepStack (arXiv 2406.04334).

    Behind decoder layer k the text model adds the k-th of these features to the visual tokens, all
    of them, by a mask over the whole input: ``follow`` shortens both to the tokens still there.
    """

    model_type: ClassVar[str] = "qwen3_vl"

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As SigLIP's."""
        return SIGLIP_PIXELS

    def follow(self, survivors: Survivors) -> Callable[[], None]:
        """Shorten what DeepStack adds to the tokens that are left."""
        text = self.text_model
        before = text.__dict__.get(METHOD)
        process = getattr(text, METHOD)

        def shortened(hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
            left = survivors()
            if left is not None:
                index, valid = (part.to(visual.device) for part in left)
                number = visual.flatten().cumsum(0).view_as(visual) - 1
                visual = visual.gather(1, index) & valid
                features = features[number.gather(1, index)[visual].to(features.device)]
            done: Tensor = process(hidden, visual, features)
            return done

        def undo() -> None:
            text.__dict__.pop(METHOD, None)
            if before is not None:
                text.__dict__[METHOD] = before

        text.__dict__[METHOD] = shortened
        return undo

    def injected(self, arguments: Mapping[str, Any]) -> list[Tensor]:
        """The features of the blocks ``deepstack_visual_indexes``, merged."""
        return list(arguments.get("deepstack_visual_embeds") or [])

    def inject(self, hidden: Tensor, image_mask: Tensor, features: Tensor) -> Tensor:
        """Add them to the states of image tokens."""
        done: Tensor = getattr(self.text_model, METHOD)(hidden, image_mask, features)
        return done
