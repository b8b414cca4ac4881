"""The config's field ``pixels``: how many pixels of a picture the processor gets to use."""

import json
from abc import abstractmethod
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from prunetune.messages import allowed, shown
from prunetune.provenance import Frozen, Number, Whole

_ALLOWED = 'allowed {"share": a number above 0 and at most 1} or {"max_pixels": a whole number}'


class Pixels(Frozen):
    """How many pixels a picture keeps; counted from those that the processor would have used.

    A kind of the future is another subclass, told by its own key or by ``name``.
    """

    @abstractmethod
    def cap(self, used: float) -> float:
        """Return how many pixels may be used of a picture, at most ``used``.

        Args:
            used: Pixels that the processor would have used: of its own limits and grid.
        """

    @property
    @abstractmethod
    def shrinks(self) -> bool:
        """Whether any picture can become smaller."""

    @property
    @abstractmethod
    def shown(self) -> str:
        """In a few words."""

    @property
    def key(self) -> str:
        """What caches of resized pictures are told apart by."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


class Share(Pixels):
    """A share of the pixels that the processor would have used.

    Attributes:
        share: In (0, 1]; both sides are scaled by its square root.
    """

    share: Annotated[Number, Field(gt=0.0, le=1.0), allowed("a number above 0 and at most 1")]

    def cap(self, used: float) -> float:
        """Return the share of them."""
        return used * self.share

    @property
    def shrinks(self) -> bool:
        """Not at 1."""
        return self.share < 1.0

    @property
    def shown(self) -> str:
        """As people say it."""
        return f"{self.share:.4g} of the pixels"


class MaxPixels(Pixels):
    """An absolute cap, which the settings of other engines can say, too.

    Attributes:
        max_pixels: Pixels of a picture, or of a video's frame.
    """

    max_pixels: Annotated[Whole, Field(ge=1), allowed("a whole number of at least 1")]

    def cap(self, used: float) -> float:
        """Return the cap, where it is below."""
        return min(used, float(self.max_pixels))

    @property
    def shrinks(self) -> bool:
        """It may."""
        return True

    @property
    def shown(self) -> str:
        """As people say it."""
        return f"at most {self.max_pixels} pixels"


def _kind(value: Any) -> Any:
    if isinstance(value, Pixels):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"received {shown(value)}, {_ALLOWED}")
    if "name" in value:
        raise ValueError(
            f"received the name {shown(value['name'])}, which this release does not know; "
            f"{_ALLOWED}, or upgrade prunetune"
        )
    keys = sorted(map(str, value))
    if keys not in (["share"], ["max_pixels"]):
        raise ValueError(f"received the keys {', '.join(keys) or 'none'}, {_ALLOWED}")
    kind = Share if keys == ["share"] else MaxPixels
    return kind.model_validate(value)


AnyPixels = Annotated[Share | MaxPixels, BeforeValidator(_kind)]


def shrinks(pixels: Pixels | None) -> bool:
    """Tell whether a config's ``pixels`` make any picture smaller."""
    return pixels is not None and pixels.shrinks
