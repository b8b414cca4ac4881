"""What a run will do and how long, from one timed sample; how many held-out samples fit."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prunetune.calibration import CalibrationSet, Sample
from prunetune.errors import ConfigError, StudyError
from prunetune.measure.scores import image_ids
from prunetune.presets import preset_names
from prunetune.study.clock import Clock
from prunetune.study.durations import bound, shown
from prunetune.study.outcome.decision import CANDIDATES, check_enough
from prunetune.study.outcome.table import ANSWERED

if TYPE_CHECKING:
    from prunetune.promise import Promise
    from prunetune.study.prepare import Prepared

_QUICK = 0.4
_SOME = 8
_LEAST_HELD_OUT = 16
_UNPRUNED_SHARE = 0.45
"""Of a run's time: what unpruned runs may take, if that is enough for a few samples."""
_UNPRUNED_MOST = 0.7
"""What they may take at most."""
PAGE_SECONDS = 3.0
_PAGE_SHARE = 0.05
_SPARE = 1.1
"""Times what was found to be enough: loading and a sample do not take the same time twice."""


@dataclass(frozen=True)
class Pace:
    """Seconds a sample.

    Attributes:
        unpruned: Of the unpruned run, the first about a picture.
        again: Of a further one about the same picture.
        trial: Of a config.
    """

    unpruned: float
    again: float
    trial: float

    def of(self, samples: Iterable[Any]) -> float:
        """Return the mean seconds of a sample's unpruned run over a split."""
        pictures = image_ids(list(samples))
        first = len(set(pictures)) / max(1, len(pictures))
        return first * self.unpruned + (1 - first) * self.again


def timed(prepared: "Prepared") -> Pace:
    """Run a sample unpruned and pruned, and say how long each took; quick ones a few at once."""
    found = _timed(prepared, _few(prepared.calibration), warm=False)
    if found.unpruned + found.trial >= _QUICK:
        return found
    return _timed(prepared, first_pictures(prepared.calibration, _SOME), warm=True)


def _few(samples: CalibrationSet) -> CalibrationSet:
    """Return a sample, one about another picture, and a further one about that, as there are."""
    by_picture: dict[str, list[Sample]] = {}
    for sample in samples:
        by_picture.setdefault(sample.image_id, []).append(sample)
    one, *others = by_picture.values()
    other = max(others, key=len, default=[])
    return replace(samples, samples=(one[0], *other[:2]))


def _timed(prepared: "Prepared", samples: CalibrationSet, *, warm: bool) -> Pace:
    from prunetune.measure.evaluator import Evaluator
    from prunetune.space.space import Space
    from prunetune.study.trials.trials import presets_at

    marks = [time.monotonic()]
    evaluator = Evaluator(
        prepared.loaded,
        samples,
        deepest=prepared.deepest,
        batch_size=_SOME if warm else 1,
        own=prepared.spec.own_tokens,
        levels=prepared.levels,
        progress=lambda done: marks.append(time.monotonic()),
    )
    took = _parts(marks, warm)
    pictures = max(1, len({sample.image_id for sample in samples}) - (not warm))
    first, more = sorted(took, reverse=True)[:pictures], sorted(took, reverse=True)[pictures:]
    unpruned = fmean(first)
    again = fmean(more) if more else unpruned
    space = Space.of(prepared.spec, evaluator.facts())
    known = (p.config for p in presets_at(("uniform", *preset_names()), space))
    config = next((config for config in known if config is not None), None)
    if config is None:
        return Pace(unpruned, again, unpruned)
    marks = [time.monotonic()]
    for _ in evaluator.evaluate(config, answers=False):
        marks.append(time.monotonic())
    took = _parts(marks, warm)
    return Pace(unpruned, again, sum(took) / (len(samples) if warm else len(took)))


def _parts(marks: Sequence[float], warm: bool) -> list[float]:
    """Return what lies between marks; the first part also pays for what is set up once."""
    took = [after - before for before, after in pairwise(marks)]
    return took if warm or len(took) < 2 else took[1:]


@dataclass(frozen=True)
class Forecast:
    """What a run will do.

    Attributes:
        pace: Seconds a sample.
        unpruned: Seconds of the unpruned runs of both splits.
        calibration: Samples of the calibration split.
        held_out: Of the held-out split, as many as there is time for.
        there: Held-out samples that there are.
        trials: How many are asked for.
        configs: That are measured on held-out data at most.
        rescored: Configs that are measured on calibration data again.
        clock: Of the run.
        done: Trials that the study has finished before.
        requests: That are timed after the table.
    """

    pace: Pace
    unpruned: float
    calibration: int
    held_out: int
    there: int
    trials: int
    configs: float
    rescored: int
    clock: Clock
    done: int = 0
    requests: int = 0

    @property
    def trial(self) -> float:
        """Seconds of a trial that is not stopped early."""
        return self.pace.trial * self.calibration

    @property
    def table(self) -> float:
        """Seconds of the held-out table, of what is measured again for it, and of the report."""
        held = ANSWERED * self.pace.trial * self.configs * self.held_out
        return self.rescored * self.trial + held + PAGE_SECONDS

    @property
    def bench(self) -> float:
        """Seconds of the timed requests; about, since answers may be longer than expected ones."""
        return self.requests * self.pace.unpruned

    @property
    def after(self) -> float:
        """Seconds of all that follows the trials."""
        return self.table + self.bench

    def at(self, pace: float | None) -> "Forecast":
        """Return the forecast for another pace of trials, as they have shown it."""
        return self if pace is None else replace(self, pace=replace(self.pace, trial=pace))

    def words(self) -> str:
        """Return what will be done, and how long it takes, in one line."""
        few = "" if self.held_out == self.there else f" (of {self.there}; no time for more)"
        left = max(0, self.trials - self.done)
        more = f"{left} more trials ({self.done} of {self.trials} are done)"
        trials = more if self.done else f"{self.trials} trials"
        said = (
            f"plan: unpruned run of {self.calibration} calibration and {self.held_out} held-out "
            f"samples{few}, about {shown(self.unpruned)}; up to "
            f"{trials} of at most {bound(self.trial)} each; "
            f"held-out table, at most {bound(self.table)}"
        )
        if self.requests:
            said += f"; {self.requests} timed requests, about {shown(self.bench)}"
        if self.clock.seconds is None:
            most = self.unpruned + left * self.trial + self.after
            return f"{said}; at most {bound(most)} in all"
        return f"{said}; ends after {bound(self.clock.seconds)}, with what is measured by then"


def forecast(prepared: "Prepared", clock: Clock, requests: int = 0) -> Forecast:
    """Time a sample, and fit what will be done into the run's time.

    Args:
        prepared: What was loaded.
        clock: Of the run.
        requests: That will be timed after the table.

    Raises:
        ConfigError: Not even the unpruned run of the calibration samples fits, and of as many
            held-out ones as a promise needs.
    """
    pace, spec = timed(prepared), prepared.spec
    there, each = len(prepared.held_out), pace.of(prepared.held_out)
    first = pace.of(prepared.calibration) * len(prepared.calibration)
    rivals = 1 + 0.6 * (1 + len(preset_names()))
    points = 1 if spec.promise or not spec.pareto else spec.rescored
    clock.pace = pace.trial
    count = there
    if clock.seconds is not None:
        allowed = _UNPRUNED_SHARE * clock.left - first
        least = _least(prepared.held_out, spec.promise)
        count = max(least, min(there, int(allowed / max(each, 1e-9))))
        # Pictures stay whole: what is planned is what is measured.
        count = max(least, len(first_pictures(prepared.held_out, count)))
        if first + least * each > _UNPRUNED_MOST * clock.left:
            promised = spec.promise is not None and least > _LEAST_HELD_OUT
            calibration = len(prepared.calibration)
            raise ConfigError(_too_short(clock, calibration, least, first, each, promised))
    return Forecast(
        pace=pace,
        unpruned=first + count * each,
        calibration=len(prepared.calibration),
        held_out=count,
        there=there,
        trials=spec.trials,
        configs=points * rivals + (CANDIDATES / 2 if spec.promise else 0),
        rescored=points if spec.pareto else spec.rescored,
        clock=clock,
        done=prepared.done,
        requests=requests,
    )


def _least(held_out: CalibrationSet, promise: "Promise | None") -> int:
    """Return the fewest held-out samples, whole pictures, that a run is worth its time with."""
    there = len(held_out)
    low = len(first_pictures(held_out, min(there, _LEAST_HELD_OUT)))
    if promise is None or _enough(promise, first_pictures(held_out, low)):
        return low
    high = there
    while high - low > 1:
        middle = (low + high) // 2
        if _enough(promise, first_pictures(held_out, middle)):
            high = middle
        else:
            low = middle
    return len(first_pictures(held_out, high))


def _enough(promise: "Promise", samples: CalibrationSet) -> bool:
    answered = any(sample.answer is not None for sample in samples)
    try:
        check_enough(promise, samples.samples, answered)
    except StudyError:
        return False
    return True


def _too_short(
    clock: Clock, calibration: int, held_out: int, first: float, each: float, promised: bool
) -> str:
    """Return words on a timeout that not even the unpruned run fits into."""
    seconds, before = clock.seconds or 0.0, clock.now() - clock.begun
    unpruned = first + held_out * each
    needed = before + unpruned / _UNPRUNED_MOST
    needed = min(needed + PAGE_SECONDS, needed / (1 - _PAGE_SHARE))
    spare = _UNPRUNED_MOST * clock.left - held_out * each
    fits = int(spare * calibration / max(first, 1e-9))
    fewer = f", or --samples {fits}" if _LEAST_HELD_OUT <= fits < calibration else ""
    held = f"{held_out} held-out samples" + (", as many as the promise needs," if promised else "")
    less = ", or promise less" if promised else ""
    return (
        f"--timeout: received {seconds:g}, allowed here about {math.ceil(_SPARE * needed)} or "
        f"more: loading and timing took {shown(before)}, the unpruned run of {calibration} "
        f"calibration and {held} takes about {shown(unpruned)}, and {_UNPRUNED_MOST:.0%} of the "
        f"time left is the most it may take; give more time{fewer}{less}"
    )


def page_seconds(timeout: float | None) -> float:
    """Return the seconds of a run's time that are kept for its report."""
    return min(PAGE_SECONDS, _PAGE_SHARE * (timeout or 0.0))


def first_pictures(samples: CalibrationSet, count: int) -> CalibrationSet:
    """Return about ``count`` samples: all about each of the first pictures, in their order.

    A picture's samples share its run through the vision tower; the order of pictures is random.
    """
    if count >= len(samples):
        return samples
    by_picture: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_picture.setdefault(sample.image_id, []).append(index)
    chosen: set[int] = set()
    for group in by_picture.values():
        if chosen and len(chosen) + len(group) > count:
            break
        chosen.update(group)
    kept = tuple(samples[index] for index in sorted(chosen))
    return replace(samples, samples=kept)
