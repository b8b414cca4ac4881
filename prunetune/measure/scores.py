"""What measures a config, and the means of what it measured."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prunetune.errors import StudyError
from prunetune.interrupts import check

if TYPE_CHECKING:
    from prunetune.budget import Level, ModelFacts
    from prunetune.config import PruningConfig
    from prunetune.families.base_towers import Seen
    from prunetune.pixels import Pixels


class SampleScore(Protocol):
    """What a config did to one sample: ``prunetune.measure.results.SampleResult``."""

    @property
    def gap(self) -> float: ...  # noqa: D102
    @property
    def kl(self) -> float: ...  # noqa: D102
    @property
    def kl_answer(self) -> float | None: ...  # noqa: D102
    @property
    def agrees(self) -> bool: ...  # noqa: D102
    @property
    def correct(self) -> bool | None: ...  # noqa: D102


class Measures(Protocol):
    """What measures configs on one split: ``prunetune.measure.evaluator.Evaluator``."""

    @property
    def samples(self) -> Sequence[Any]:
        """The split, in the order that trials use."""

    @property
    def unpruned_correct(self) -> Sequence[bool | None]:
        """Whether the unpruned model answers each sample; None without an answer."""

    def evaluate(self, config: "PruningConfig", *, answers: bool = True) -> Iterator[Any]:
        """Yield batches of (sample index, result); a caller may stop early.

        Without ``answers`` nobody asks whether expected answers are given.
        """

    def facts(self) -> "ModelFacts":
        """Return what is known of the model and the data."""

    def seen_at(self, pixels: "Pixels | None") -> "Seen":
        """Return what the vision tower is given of a mean prompt at a level of pixels."""

    def levels_near(self, budgets: Sequence[float]) -> "list[Level]":
        """Return levels of pixels, finer near budgets; none where no level leaves fewer tokens."""


@dataclass(frozen=True)
class Scores:
    """Means of a config over samples.

    Attributes:
        gap: Mean gap.
        kl: Mean KL of the next-token distribution.
        top1_agreement: Share of samples with the unpruned model's most likely token.
        accuracy: Share of answered samples; None where no sample has an answer.
        samples: Number of samples.
        kl_answer: Mean KL along the unpruned model's own answers; None where it was not asked for.
    """

    gap: float
    kl: float
    top1_agreement: float
    accuracy: float | None
    samples: int
    kl_answer: float | None = None

    @classmethod
    def of(cls, results: Sequence[SampleScore]) -> "Scores":
        """Return the means of ``results`` (at least one)."""
        count = len(results)
        along = [r.kl_answer for r in results if r.kl_answer is not None]
        return cls(
            gap=sum(r.gap for r in results) / count,
            kl=sum(r.kl for r in results) / count,
            top1_agreement=sum(r.agrees for r in results) / count,
            accuracy=accuracy([r.correct for r in results]),
            samples=count,
            kl_answer=sum(along) / count if len(along) == count else None,
        )


def measure(
    evaluator: Measures, config: "PruningConfig", *, answers: bool = True
) -> list[SampleScore]:
    """Return a config's results on all samples of a split, in order.

    Without ``answers`` exactly as a trial measures: in 16 bits, what else runs in a batch moves a
    mean by some 1e-5.

    Raises:
        StudyError: A state is not a number, so no mean is one.
    """
    found: dict[int, SampleScore] = {}
    for batch in evaluator.evaluate(config, answers=answers):
        check()
        found.update(batch)
    if broken := sum(not math.isfinite(result.gap) for result in found.values()):
        raise StudyError(
            f"the pruned model gave no usable state on {broken} of {len(found)} samples; load it "
            "in another number format (--dtype float32 or bfloat16), or export another trial"
        )
    return [found[index] for index in sorted(found)]


def accuracy(correct: Sequence[bool | None]) -> float | None:
    """Return the share of answered samples; None where no sample has an answer."""
    known = [c for c in correct if c is not None]
    return sum(known) / len(known) if known else None


def image_ids(samples: Sequence[Any]) -> list[str]:
    """Return which samples belong together: those on one picture."""
    return [getattr(sample, "image_id", "") or str(i) for i, sample in enumerate(samples)]
