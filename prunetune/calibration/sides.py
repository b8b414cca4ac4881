"""Calibration and held-out samples of one source, or of one source each."""

import logging
from dataclasses import replace

from prunetune.calibration.dataset import CalibrationSet
from prunetune.calibration.sources import load_calibration
from prunetune.errors import DataError

logger = logging.getLogger(__name__)


def load_sides(
    source: str,
    held_out: str | None = None,
    *,
    seed: int = 0,
    samples: int | None = None,
    held_out_samples: int | None = None,
    skip_bad: bool = False,
) -> tuple[CalibrationSet, CalibrationSet]:
    """Load calibration samples and held-out ones on other pictures.

    Args:
        source: As ``load_calibration`` takes it.
        held_out: Another source, whose samples are all held out, while all of ``source`` is
            calibration data; None for a share of ``source``'s pictures.
        seed: Decides the split by image and the order of samples.
        samples: At most so many calibration samples.
        held_out_samples: At most so many held-out samples.
        skip_bad: Leave out bad pictures and rows instead of failing.

    Raises:
        DataError: A source or one of its samples cannot be used, a side is empty, or all held-out
            pictures are calibration pictures.
    """
    if held_out is None:
        return load_calibration(
            source,
            seed=seed,
            samples=samples,
            held_out_samples=held_out_samples,
            skip_bad=skip_bad,
        )
    calibration, _ = load_calibration(
        source, seed=seed, samples=samples, skip_bad=skip_bad, held_out=0
    )
    other, _ = load_calibration(
        held_out, seed=seed, samples=held_out_samples, skip_bad=skip_bad, held_out=0
    )
    return calibration, _unseen(calibration, other)


def _unseen(calibration: CalibrationSet, held_out: CalibrationSet) -> CalibrationSet:
    """Return the held-out samples without those whose pictures a search sees."""
    seen = {picture for sample in calibration for picture in sample.pixels()}
    unseen = tuple(sample for sample in held_out if seen.isdisjoint(sample.pixels()))
    if not unseen:
        raise DataError(
            f"held_out: all {len(held_out)} samples show pictures of the calibration data, so "
            "results on them would be worth nothing; give other pictures, or leave --held-out out"
        )
    if len(unseen) < len(held_out):
        logger.warning(
            "%d of %d held-out samples show pictures of the calibration data and are left out",
            *(len(held_out) - len(unseen), len(held_out)),
        )
    return replace(held_out, samples=unseen)
