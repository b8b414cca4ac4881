"""The kinds of pictures: what draws each, what asks about it, and where its seeds lie."""

from collections.abc import Callable
from dataclasses import dataclass

from training.tiny.busy.pictures import draw_busy_picture
from training.tiny.busy.questions import BusyAsker
from training.tiny.pictures import Picture, draw_picture
from training.tiny.questions import ALL_TYPES, TYPES, Asker

# first number of the seed of everything drawn: no two uses share a picture
SEEDS = {"training": 0, "calibration": 1, "held_out": 2, "evaluation": 3}


@dataclass(frozen=True)
class Kind:
    """A kind of pictures.

    Attributes:
        draw: (rng, digit bank, width, height) -> picture.
        asker: asks about one picture.
        types: the types of questions, in the order that sets ask them.
        offset: added to the first number of every seed, so that kinds share none.
    """

    draw: Callable[..., Picture]
    asker: type[Asker]
    types: tuple[str, ...]
    offset: int

    def seed(self, use: str) -> int:
        """First number of the seed of one of SEEDS."""
        return SEEDS[use] + self.offset


KINDS = {
    "plain": Kind(draw_picture, Asker, TYPES, 0),
    "busy": Kind(draw_busy_picture, BusyAsker, ALL_TYPES, 100),
}
ALL_SEEDS = frozenset(kind.seed(use) for kind in KINDS.values() for use in SEEDS)
