"""The cheapest config that keeps a promise: "loses at most this much", with 95% confidence.

A promise that is checked on the data which chose the config is worth nothing, and checking every
candidate on held-out data would find one that passes by chance. So calibration data order the
candidates from safest to cheapest, and held-out data test them in that order, each at the full
level, until the first one fails: the last that passed ships. Fixed-sequence testing (Maurer,
Hothorn, Lehmacher 1995) keeps the chance of shipping a config that breaks the promise at the level
of one test, however many candidates there are.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.errors import StudyError
from prunetune.measure.scores import SampleScore
from prunetune.promise import Promise
from prunetune.provenance import Loss
from prunetune.study.outcome.noise import paired

LEVEL = 0.95
"""Confidence of a promise, one-sided."""

NO_ANSWERS = (
    "a promise about accuracy: the held-out samples have no answers, so nothing is known about "
    "what is lost; add answers to the data, or promise --min-agreement or --max-gap"
)


def losses(
    promise: Promise, results: Sequence[SampleScore], unpruned: Sequence[bool | None]
) -> list[float]:
    """Return what each sample loses; NaN where it has no answer to lose.

    Raises:
        StudyError: No sample has an answer.
    """
    if promise.loss == "gap":
        return [result.gap for result in results]
    if promise.loss == "agreement":
        return [float(not result.agrees) for result in results]
    if all(right is None for right in unpruned):
        raise StudyError(NO_ANSWERS)
    return [
        math.nan if right is None else float(right) - float(bool(result.correct))
        for right, result in zip(unpruned, results, strict=True)
    ]


@dataclass(frozen=True)
class Loses:
    """What a config loses against unpruned on held-out data.

    Attributes:
        mean: Over samples.
        low: Lower end of the two-sided 95% interval.
        high: Its upper end.
        bound: One-sided 95% upper bound: what the promise is held against.
        pictures: How many there were.
        error: Standard error of ``mean``, over pictures.
    """

    mean: float
    low: float
    high: float
    bound: float
    pictures: int
    error: float

    def needed(self, most: float) -> int | None:
        """Return the pictures at which this mean would pass; None where none would do."""
        if self.mean >= most:
            return None
        return math.ceil(self.pictures * ((self.bound - self.mean) / (most - self.mean)) ** 2)

    def within(self, of: float | None) -> Loss:
        """Return it as it is told: nothing loses more than there is, nor gains what is not missing.

        Args:
            of: What the unpruned model has of it, in 0 .. 1; None where that says nothing.
        """
        low, high = self.low, self.high
        if of is not None:
            low, high = max(low, of - 1.0), min(high, of)
        apart = self.low > 0 or self.high < 0
        return Loss(mean=self.mean, interval=(low, high), of=of, beyond_noise=apart)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``search --json`` prints of it."""
        return {
            "mean": self.mean,
            "interval": [self.low, self.high],
            "bound": self.bound,
            "pictures": self.pictures,
        }


def lost(values: Sequence[float], images: Sequence[str]) -> Loses:
    """Return the mean of what samples lose, with bounds over pictures (Student's t).

    A set without any loss would have no error at all: one more sample lost and one won is what
    the next set may show (as in Agresti's and Coull's intervals), so the error is at least that.

    Args:
        values: One a sample; NaN: nothing to lose there.
        images: The picture that each shows.
    """
    from scipy.stats import t

    kept = [(v, i) for v, i in zip(values, images, strict=True) if not math.isnan(v)]
    given, shown = [v for v, _ in kept], [i for _, i in kept]
    mean, error = paired(given, [0.0] * len(given), shown)
    pictures = len(set(shown))
    error = math.hypot(error, math.sqrt(2.0) / len(given))
    free = max(1, pictures - 1)
    one, two = (float(t.ppf(level, free)) for level in (LEVEL, (1 + LEVEL) / 2))
    return Loses(mean, mean - two * error, mean + two * error, mean + one * error, pictures, error)


@dataclass(frozen=True)
class Tested:
    """A candidate that was held against the promise.

    Attributes:
        trial: Number of the trial.
        cost: Of the config.
        loses: What it loses on held-out data.
        passed: Whether the bound is within the promise.
    """

    trial: int
    cost: float
    loses: Loses
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a row of what ``search --json`` prints."""
        return {
            "trial": self.trial,
            "cost": self.cost,
            "loses": self.loses.to_dict(),
            "passed": self.passed,
        }


def in_sequence(
    promise: Promise,
    candidates: Iterable[tuple[int, float]],
    measured: Callable[[int], Loses | None],
) -> list[Tested]:
    """Test candidates in order until the first fails; the last that passed keeps the promise.

    Args:
        promise: What may be lost.
        candidates: Trial and cost, from safest to cheapest, as calibration data order them.
        measured: What a trial's config loses on held-out data; None where it gives no number,
            which is a failure.
    """
    tested: list[Tested] = []
    for trial, cost in candidates:
        loses = measured(trial)
        if loses is None:
            break
        tested.append(Tested(trial, cost, loses, loses.bound <= promise.most))
        if not tested[-1].passed:
            break
    return tested


def knee(front: Sequence[tuple[float, float]]) -> int:
    """Return the place of the knee of a front: farthest below the line between its ends.

    Args:
        front: Cost and metric, by rising cost; each scaled to [0, 1] by its range.
    """
    if len(front) < 3:
        return 0
    costs, values = zip(*front, strict=True)
    wide, high = (max(costs) - min(costs)) or 1.0, (max(values) - min(values)) or 1.0
    below = [1 - (c - min(costs)) / wide - (v - min(values)) / high for c, v in front]
    return max(range(len(front)), key=below.__getitem__)
