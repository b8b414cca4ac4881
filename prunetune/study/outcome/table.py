"""The table of rivals on held-out data: no sample is run that can change nothing, none too late.

A rival is left as soon as it can neither be the best one nor anything but beaten by the tuned
config beyond noise, on the whole split and whatever the rest of its samples were: gaps are never
negative, so a sum of gaps only grows, and what was answered wrong stays wrong. That is arithmetic,
not a test: what is said of the rival is what all samples would say.
"""

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from prunetune.config import PruningConfig
from prunetune.errors import StudyError
from prunetune.interrupts import check
from prunetune.measure.scores import Measures, SampleScore, image_ids
from prunetune.pixels import shrinks
from prunetune.study.clock import Clock, OutOfTime
from prunetune.study.outcome.judging import beaten
from prunetune.study.trials.trials import Preset

LOOK = 0.2
"""Share of the samples that every rival is measured on before the best go on first."""
ANSWERED = 1.5
"""What a sample of the table costs beside one of a trial: answers are looked at."""
UNIFORM = "uniform"
_LEAST_PICTURES = 12
_FEWEST = 16


class End(Enum):
    """Why a rival is measured no further; the value is what is said of it."""

    TIME_UP = "the time was up"
    BEATEN = "is beaten whatever the rest is, and not the best one"
    FAILED = "not measured"


class Few:
    """The first samples of a split; otherwise the ``Measures`` it wraps.

    Args:
        inner: The split.
        count: How many.
    """

    def __init__(self, inner: Measures, count: int) -> None:
        self._inner = inner
        self.samples = inner.samples[:count]
        self.unpruned_correct = inner.unpruned_correct[:count]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def evaluate(self, config: Any, *, answers: bool = True) -> Iterator[Any]:
        """Yield what the wrapped split yields of these samples."""
        due = len(self.samples)
        with closing(cast(Any, self._inner.evaluate(config, answers=answers))) as batches:
            for batch in batches:
                inside = [(index, result) for index, result in batch if index < len(self.samples)]
                due -= len(inside)
                if inside:
                    yield inside
                if due <= 0:
                    return


def fitting(
    held_out: Measures, clock: Clock, rivals: int, seconds: float | None = None
) -> Measures:
    """Return the split, or as many of its first samples as there is time to compare configs on.

    How many depends on the clock alone, never on what was measured: intervals stay what they are.

    Args:
        held_out: On the held-out split, in random order.
        clock: Of the run; without an end, or a known pace, all samples are taken.
        rivals: Configs that are compared with the tuned one.
        seconds: What this comparison may take; None for all that is left.
    """
    left, total = clock.left if seconds is None else seconds, len(held_out.samples)
    if clock.pace is None or math.isinf(left):
        return held_out
    # Most rivals are left early.
    each = ANSWERED * clock.pace * (1 + 0.6 * rivals)
    count = max(_FEWEST, int(0.9 * max(0.0, left) / max(each, 1e-9)))
    return held_out if count >= total else cast(Measures, Few(held_out, count))


@dataclass
class Row:
    """A rival that is being measured.

    Attributes:
        preset: The rival.
        results: Of the first samples.
        batches: Gives the results of the next ones.
        end: Why there are no more; None while there may be.
        error: What went wrong, where something did.
    """

    preset: Preset
    results: list[SampleScore] = field(default_factory=list)
    batches: Any = None
    end: End | None = None
    error: str = ""

    @property
    def config(self) -> PruningConfig:
        """What is measured."""
        return cast(PruningConfig, self.preset.config)

    @property
    def note(self) -> str:
        """Why there are no more results, in words; empty while there may be."""
        said = self.end.value if self.end else ""
        return f"{said}: {self.error}" if self.error else said

    @property
    def gap(self) -> float:
        """Sum of gaps so far."""
        return math.fsum(result.gap for result in self.results)

    @property
    def wrong(self) -> int:
        """Answers that were not given so far."""
        return sum(result.correct is False for result in self.results)


class Table:
    """Measures rivals beside the tuned config's results, the most promising first.

    Args:
        held_out: The split.
        tuned: The tuned config's results on all of its samples.
        clock: When to end.
        seed: Of the intervals that rivals will be judged by.
        itself: Names of rivals that are the tuned config: no others are beaten by them.
    """

    def __init__(
        self,
        held_out: Measures,
        tuned: Sequence[SampleScore],
        clock: Clock,
        *,
        seed: int = 0,
        itself: Container[str] = (),
    ) -> None:
        self._held_out, self._tuned, self._clock = held_out, tuned, clock
        self._seed, self._itself = seed, itself
        self._total = len(held_out.samples)
        self._images = image_ids(held_out.samples)
        self._complete: list[Row] = []

    def measure(self, presets: Sequence[Preset]) -> dict[str, Row]:
        """Return a row for every rival that can be run, some of them on fewer samples."""
        rows = [Row(preset) for preset in presets if preset.config is not None]
        try:
            # Smaller pictures last: nothing is known of them before all have been run unpruned.
            # The control that a config has to beat first: where time is short it is measured.
            rows.sort(key=lambda row: (shrinks(row.config.pixels), row.preset.name != UNIFORM))
            for until in (1, int(LOOK * self._total)):
                for row in rows:
                    self._run(row, until)
            # The best go first: the others are then left soonest.
            for row in sorted(rows, key=lambda row: row.gap / max(1, len(row.results))):
                self._run(row, self._total)
                if len(row.results) == self._total and row.preset.name not in self._itself:
                    self._complete.append(row)
        finally:
            for row in rows:
                if row.batches is not None:
                    row.batches.close()
        return {row.preset.name: row for row in rows}

    def _run(self, row: Row, until: int) -> None:
        """Measure a rival on samples up to a number, or until nothing more is to be known."""
        while len(row.results) < until and row.end is None:
            if self._clock.up:
                row.end = End.TIME_UP
            elif self._decided(row):
                row.end = End.BEATEN
            else:
                self._step(row)

    def _step(self, row: Row) -> None:
        check()
        try:
            if row.batches is None:
                if shrinks(row.config.pixels) and self._clock.left < self._clock.unpruned:
                    # Smaller pictures run unpruned first, all of them.
                    raise OutOfTime
                row.batches = self._held_out.evaluate(row.config)
            batch = next(row.batches)
        except OutOfTime:
            row.end = End.TIME_UP
            return
        except (StudyError, StopIteration) as error:
            row.end, row.error = End.FAILED, str(error)
            return
        new = [result for _, result in sorted(batch, key=lambda item: item[0])]
        if broken := sum(not math.isfinite(result.gap) for result in new):
            row.end = End.FAILED
            row.error = (
                f"the pruned model gave no usable state on {broken} of "
                f"{len(row.results) + len(new)} samples"
            )
            row.results.clear()
            return
        row.results += new

    def _decided(self, row: Row) -> bool:
        """Tell whether nothing that is still to be measured can change what is said of a rival."""
        count, so_far = len(row.results), (row.wrong, row.gap)
        if row.preset.name in self._itself or len(set(self._images[:count])) < _LEAST_PICTURES:
            return False
        # As the best one is chosen: the fewest wrong answers, then the lowest gap.
        if not any((other.wrong, other.gap) < so_far for other in self._complete):
            return False
        return beaten(self._tuned, row.results, self._images, self._seed)
