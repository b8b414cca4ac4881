"""How many image tokens a split's pictures have at a level of pixels, by the processor's word."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from prunetune.budget import Level
from prunetune.calibration import CalibrationSet, Sample, encode
from prunetune.families import Family
from prunetune.families.base_towers import Seen
from prunetune.pixels import Pixels, Share
from prunetune.pixels.processors import at_level

Sizes = tuple[tuple[int, int], ...]


class TokenCounter:
    """Counts tokens of blank pictures: only the size counts, and each is asked for once.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        family: View of its model.
        samples: The split.
    """

    def __init__(self, loaded: Any, family: Family, samples: CalibrationSet) -> None:
        self._processor, self._family = loaded.processor, family
        self._sizes: Counter[Sizes] = Counter(
            tuple(image.size for image in sample.images) for sample in samples
        )
        self._found: dict[str, tuple[int, Seen]] = {}

    def total(self, pixels: Pixels | None) -> int:
        """Return the image tokens of all samples at a level; None: of the full pictures."""
        return self._at(pixels)[0]

    def seen(self, pixels: Pixels | None) -> Seen:
        """Return what the vision tower is given of a mean prompt at a level."""
        return self._at(pixels)[1].times(1 / self._sizes.total())

    def _at(self, pixels: Pixels | None) -> tuple[int, Seen]:
        key = pixels.key if pixels is not None and pixels.shrinks else ""
        if key not in self._found:
            kind = self._family.config.model_type
            self._found[key] = self._count(at_level(self._processor, pixels, kind))
        return self._found[key]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(Height, width) of all pictures that differ in size."""
        return sorted({(height, width) for row in self._sizes for width, height in row})

    def of(self, processor: Any) -> int:
        """Return the image tokens of all samples by a processor."""
        return self._count(processor)[0]

    def _count(self, processor: Any) -> tuple[int, Seen]:
        token, total, seen = self._family.image_token_id, 0, Seen()
        for sizes, times in self._sizes.items():
            blank = tuple(Image.new("RGB", size) for size in sizes)
            inputs = encode(processor, [Sample(blank, "?")])
            total += times * int((inputs["input_ids"] == token).sum())
            seen += self._family.seen(inputs).times(times)
        return total, seen

    def share(self, pixels: Pixels | None) -> float:
        """Return the share of the full pictures' tokens that a level leaves."""
        return self.total(pixels) / self.total(None)

    def levels(self, shares: Sequence[float]) -> list[Level]:
        """Return levels, from large to small; none of a family that no level makes smaller."""
        if not self._family.resizing:
            return []
        ordered = sorted(shares, reverse=True)
        return [Level(share, self.share(Share(share=share))) for share in ordered]
