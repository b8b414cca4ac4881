"""What a text model does to states between its decoder layers, and to the tokens that it counts."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from prunetune.families.base_calls import Survivors, Tokens


class Between:
    """Of a ``Family``: nothing, unless it says otherwise."""

    def number(self, tokens: Tokens) -> Callable[[], None]:
        """Make layers that count positions by themselves count the tokens of the sequence.

        Returns:
            What undoes it.
        """
        return lambda: None

    def follow(self, survivors: Survivors) -> Callable[[], None]:
        """Make what the text model does between decoder layers fit the tokens that are left.

        Returns:
            What undoes it.
        """
        return lambda: None

    def injected(self, arguments: Mapping[str, Any]) -> list[Tensor]:
        """Return what the text model adds to image tokens behind each of its first layers.

        Args:
            arguments: Of the text model's forward, by name.

        Returns:
            ``[image tokens of the batch, d]`` each; ``[0, d]`` where nothing is added.
        """
        return []

    def inject(self, hidden: Tensor, image_mask: Tensor, features: Tensor) -> Tensor:
        """Return the states ``[B, m, d]`` that leave a layer, with ``features`` added.

        Args:
            hidden: What the layer returned.
            image_mask: ``[B, S]`` bool over the input's slots, dropped ones included.
            features: One item of ``injected``.
        """
        raise NotImplementedError
