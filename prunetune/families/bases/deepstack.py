"""DeepStack: features of earlier tower blocks are added behind the first decoder layers."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from prunetune.families.base import Survivors
from prunetune.families.bases.qwen import Qwen3Tower

METHOD = "_deepstack_process"
Left = tuple[Tensor, Tensor] | None


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
            features = left_of(features, visual, left)
            done: Tensor = process(hidden, left_of_mask(visual, left), features)
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


def left_of_mask(visual: Tensor, left: Left) -> Tensor:
    """Return which of the tokens that are left are image tokens, ``[B, m]`` bool.

    Args:
        visual: ``[B, S]`` bool over the input's slots.
        left: What ``Survivors`` says.
    """
    if left is None:
        return visual
    index, valid = (part.to(visual.device) for part in left)
    return visual.gather(1, index) & valid


def left_of(features: Tensor, visual: Tensor, left: Left) -> Tensor:
    """Return the features of the image tokens that are left.

    Args:
        features: ``[image tokens of the batch, d]``.
        visual: ``[B, S]`` bool over the input's slots.
        left: What ``Survivors`` says.
    """
    if left is None:
        return features
    index = left[0].to(visual.device)
    number = visual.flatten().cumsum(0).view_as(visual) - 1
    here = number.gather(1, index)[left_of_mask(visual, left)]
    return features[here.to(features.device)]
