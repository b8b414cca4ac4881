"""Which pictures are the same: by their pixels, or nearly, whatever files they came from."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from prunetune.calibration.pictures import Picture, Source, decode, pixel_digest
from prunetune.errors import DataError

logger = logging.getLogger(__name__)

_SIDE = 8
# Levels of 255. Re-encoded at quality 50 or scaled, pictures of the embedded set, photographs and
# noise move by 0.3 to 5.1 (mean square) and by 15 at most; the two most alike of the embedded set
# are 19 and 93 apart.
_ROOT_MEAN_SQUARE, _MOST = 5.2, 24.0
# Of what a picture itself varies: two pages of text are alike wherever they are not black.
_SHARE, _FLAT = 0.15, 1.0
_ASPECT = 1.05


@dataclass(frozen=True)
class Look:
    """One picture, and what it looks like from afar.

    Args:
        picture: The picture.
        size: Width and height in pixels.
        cells: Its mean colours in 8 x 8 cells, 192 bytes: a hash under which near duplicates are
            near.
    """

    picture: Picture
    size: tuple[int, int]
    cells: bytes


class Gallery:
    """Decodes every picture of a source once, however many rows name it.

    Not for sharing among sources that may change in between.
    """

    def __init__(self) -> None:
        # Two splits of one table have rows of one name.
        self._found: dict[tuple[str, Callable[[], bytes]], Look | DataError] = {}
        self._by_pixels: dict[str, Look] = {}

    def look(self, source: Source) -> Look:
        """Return what a picture looks like.

        Raises:
            DataError: It cannot be read, is no picture, is truncated, or is too large.
        """
        key = source.name, source.read
        if key not in self._found:
            try:
                self._found[key] = self._look(source)
            except DataError as error:
                self._found[key] = error
        known = self._found[key]
        if isinstance(known, DataError):
            raise known
        return known

    def _look(self, source: Source) -> Look:
        image = decode(source)
        small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
        look = Look(Picture(pixel_digest(image), source), image.size, small.tobytes())
        self._by_pixels.setdefault(look.picture.sha256, look)
        return look

    def near(self, digests: Iterable[str]) -> list[tuple[str, str]]:
        """Return the pairs of near duplicates among pictures that were looked at.

        Near duplicates are re-encoded, scaled or slightly retouched copies: their mean colours in
        8 x 8 cells are nearly the same. Crops and other brightness are other pictures.

        Args:
            digests: Of the pictures' pixels; unknown ones are passed over.
        """
        known = dict.fromkeys(digests)
        looks = [self._by_pixels[digest] for digest in known if digest in self._by_pixels]
        return [(looks[i].picture.sha256, looks[k].picture.sha256) for i, k in _near_pairs(looks)]


def _near_pairs(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Return the pairs of indices whose cells are alike."""
    if len(looks) < 2:
        return []
    import numpy as np

    cells = np.stack([np.frombuffer(look.cells, np.uint8) for look in looks]).astype(np.float32)
    means, aspects = cells.mean(1), np.log([look.size[0] / look.size[1] for look in looks])
    bounds = np.clip(_SHARE * cells.std(1), _FLAT, _ROOT_MEAN_SQUARE)
    quarters = cells.reshape(-1, 2, _SIDE // 2, 2, _SIDE // 2, 3).mean((2, 4, 5)).reshape(-1, 4)
    order = np.argsort(means, kind="stable")
    sought = means[order]
    found: list[tuple[int, int]] = []
    for place, i in enumerate(order):
        # What is nearer than the bound has a mean nearer than it, and quarters nearer than twice.
        end = int(np.searchsorted(sought, means[i] + _ROOT_MEAN_SQUARE, side="right"))
        others: Any = order[place + 1 : end]
        close = np.abs(quarters[others] - quarters[i]).max(1) <= 2 * _ROOT_MEAN_SQUARE
        others = others[close & (np.abs(aspects[others] - aspects[i]) <= np.log(_ASPECT))]
        apart = cells[others] - cells[i]
        alike = np.sqrt((apart**2).mean(1)) <= np.minimum(bounds[others], bounds[i])
        alike &= np.abs(apart).max(1, initial=0.0) <= _MOST
        found += [(min(int(i), int(k)), max(int(i), int(k))) for k in others[alike]]
    return sorted(found)
