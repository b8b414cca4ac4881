"""DeepStack: features of earlier tower blocks are added behind the first decoder layers."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from prunetune.families.base import Survivors
from prunetune.families.bases.qwen import Qwen3Tower

METHOD = "_deepstack_process"


class DeepStack(Qwen3Tower):
    """Qwen3-VL with DeepStack (arXiv 2406.04334).

    Behind decoder layer k the text model adds the k-th of these features to the visual tokens, all
    of them, by a mask over the whole input: ``follow`` shortens both to the tokens still there.
    """

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
