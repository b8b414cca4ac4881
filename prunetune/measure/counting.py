"""How many image tokens a split's pictures have at a level of pixels, by the processor's word."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from prunetune.budget import Level, candidates
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
        self._full = self.total(None)

    def total(self, pixels: Pixels | None) -> int:
        """Return the image tokens of all samples at a level; None: of the full pictures."""
        processor = at_level(self._processor, pixels, self._family.config.model_type)
        token, total = self._family.image_token_id, 0
        for sizes, times in self._sizes.items():
            blank = tuple(Image.new("RGB", size) for size in sizes)
            inputs = encode(processor, [Sample(blank, "?")])
            total += times * int((inputs["input_ids"] == token).sum())
        return total

    def share(self, pixels: Pixels | None) -> float:
        """Return the share of the full pictures' tokens that a level leaves."""
        return self.total(pixels) / self._full

    def levels(self, shares: Sequence[float]) -> list[Level]:
        """Return levels, from large to small."""
        ordered = sorted(shares, reverse=True)
        return [Level(share, self.share(Share(share=share))) for share in ordered]


def known_levels(
    loaded: Any, family: Family, samples: CalibrationSet, budgets: Sequence[float],
    given: Sequence[float] = (),
) -> list[Level]:
    """Return levels that may meet budgets; none for a family that no level makes smaller.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        family: View of its model.
        samples: The calibration split.
        budgets: Shares of the unpruned model's cost.
        given: Levels, instead of those that there are for the budgets.
    """
    if not family.resizing:
        return []
    shares = [share for share in (given or candidates(budgets)) if share < 1.0]
    return TokenCounter(loaded, family, samples).levels(shares)
