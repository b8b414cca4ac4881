"""How many image tokens a split's pictures have at a level of pixels, by the processor's word."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from prunetune.budget import Level
from prunetune.calibration import CalibrationSet, Sample, encode
from prunetune.families import Family
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
        self._totals: dict[str, int] = {}

    def total(self, pixels: Pixels | None) -> int:
        """Return the image tokens of all samples at a level; None: of the full pictures."""
        key = pixels.key if pixels is not None and pixels.shrinks else ""
        if key not in self._totals:
            self._totals[key] = self._count(pixels)
        return self._totals[key]

    def _count(self, pixels: Pixels | None) -> int:
        return self.of(at_level(self._processor, pixels, self._family.config.model_type))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(Height, width) of all pictures that differ in size."""
        return sorted({(height, width) for row in self._sizes for width, height in row})

    def of(self, processor: Any) -> int:
        """Return the image tokens of all samples by a processor."""
        token, total = self._family.image_token_id, 0
        for sizes, times in self._sizes.items():
            blank = tuple(Image.new("RGB", size) for size in sizes)
            inputs = encode(processor, [Sample(blank, "?")])
            total += times * int((inputs["input_ids"] == token).sum())
        return total

    def share(self, pixels: Pixels | None) -> float:
        """Return the share of the full pictures' tokens that a level leaves."""
        return self.total(pixels) / self.total(None)

    def levels(self, shares: Sequence[float]) -> list[Level]:
        """Return levels, from large to small; none of a family that no level makes smaller."""
        if not self._family.resizing:
            return []
        ordered = sorted(shares, reverse=True)
        return [Level(share, self.share(Share(share=share))) for share in ordered]
