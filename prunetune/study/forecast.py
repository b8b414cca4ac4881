"""What a run will do and how long, from one timed sample; how many held-out samples fit."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunetune.calibration import CalibrationSet
from prunetune.errors import ConfigError
from prunetune.presets import preset_names
from prunetune.study.clock import Clock
from prunetune.study.outcome.decision import CANDIDATES
from prunetune.study.outcome.table import ANSWERED

if TYPE_CHECKING:
    from prunetune.study.prepare import Prepared

_QUICK = 0.4
_SOME = 8
_LEAST_HELD_OUT = 16
_UNPRUNED_SHARE = 0.45
"""Of a run's time: what unpruned runs may take at most."""
PAGE_SECONDS = 3.0


@dataclass(frozen=True)
class Pace:
    """Seconds a sample.

    Attributes:
        unpruned: Of the unpruned run.
        trial: Of a config.
    """

    unpruned: float
    trial: float


def timed(prepared: "Prepared") -> Pace:
    """Run a sample unpruned and pruned, and say how long each took; quick ones a few at once."""
    pictures = {sample.image_id: k for k, sample in reversed([*enumerate(prepared.calibration)])}
    # The first one also pays for what is set up once: the second is timed, on another picture.
    found = _timed(prepared, sorted(pictures.values())[:2])
    some = range(min(_SOME, len(prepared.calibration)))
    return _timed(prepared, some) if found.unpruned + found.trial < _QUICK else found


def _timed(prepared: "Prepared", chosen: Sequence[int]) -> Pace:
    from prunetune.measure.evaluator import Evaluator
    from prunetune.space.space import Space
    from prunetune.study.trials.trials import presets_at

    samples = tuple(prepared.calibration[index] for index in chosen)
    marks = [time.monotonic()]
    evaluator = Evaluator(
        prepared.loaded,
        replace(prepared.calibration, samples=samples),
        deepest=prepared.deepest,
        batch_size=1 if len(samples) < _SOME else _SOME,
        own=prepared.spec.own_tokens,
        levels=prepared.levels,
        progress=lambda done: marks.append(time.monotonic()),
    )
    unpruned = _pace(marks, len(samples))
    space = Space.of(prepared.spec, evaluator.facts())
    known = (p.config for p in presets_at(("uniform", *preset_names()), space))
    config = next((config for config in known if config is not None), None)
    if config is None:
        return Pace(unpruned, unpruned)
    marks = [time.monotonic()]
    for _ in evaluator.evaluate(config, answers=False):
        marks.append(time.monotonic())
    return Pace(unpruned, _pace(marks, len(samples)))


def _pace(marks: Sequence[float], count: int) -> float:
    """Return seconds a sample; of few, those of the last."""
    if count < _SOME and len(marks) > 1:
        return marks[-1] - marks[-2]
    return (marks[-1] - marks[0]) / count


@dataclass(frozen=True)
class Forecast:
    """What a run will do.

    Attributes:
        pace: Seconds a sample.
        calibration: Samples of the calibration split.
        held_out: Of the held-out split, as many as there is time for.
        there: Held-out samples that there are.
        trials: How many are asked for.
        configs: That are measured on held-out data at most.
        rescored: Configs that are measured on calibration data again.
        clock: Of the run.
    """

    pace: Pace
    calibration: int
    held_out: int
    there: int
    trials: int
    configs: float
    rescored: int
    clock: Clock

    @property
    def unpruned(self) -> float:
        """Seconds of the unpruned runs of both splits."""
        return self.pace.unpruned * (self.calibration + self.held_out)

    @property
    def trial(self) -> float:
        """Seconds of a trial that is not stopped early."""
        return self.pace.trial * self.calibration

    @property
    def table(self) -> float:
        """Seconds of all that follows the trials."""
        held = ANSWERED * self.pace.trial * self.configs * self.held_out
        return self.rescored * self.trial + held + PAGE_SECONDS

    def at(self, pace: float | None) -> "Forecast":
        """Return the forecast for another pace of trials, as they have shown it."""
        return self if pace is None else replace(self, pace=replace(self.pace, trial=pace))

    def words(self) -> str:
        """Return what will be done, and how long it takes, in one line."""
        few = "" if self.held_out == self.there else f" (of {self.there}; no time for more)"
        said = (
            f"plan: unpruned run of {self.calibration} calibration and {self.held_out} held-out "
            f"samples{few}, about {shown(self.unpruned)}; up to {self.trials} trials of at most "
            f"{shown(self.trial)} each; held-out table, at most {shown(self.table)}"
        )
        if self.clock.seconds is None:
            most = self.unpruned + self.trials * self.trial + self.table
            return f"{said}; at most {shown(most)} in all"
        return f"{said}; ends after {shown(self.clock.seconds)}, with what is measured by then"


def forecast(prepared: "Prepared", clock: Clock) -> Forecast:
    """Time a sample, and fit what will be done into the run's time.

    Raises:
        ConfigError: Not even the unpruned run of the calibration samples fits.
    """
    pace, spec = timed(prepared), prepared.spec
    there = len(prepared.held_out)
    rivals = 1 + 0.6 * (1 + len(preset_names()))
    points = 1 if spec.promise or not spec.pareto else spec.rescored
    known = Forecast(
        pace=pace,
        calibration=len(prepared.calibration),
        held_out=there,
        there=there,
        trials=spec.trials,
        configs=points * rivals + (CANDIDATES / 2 if spec.promise else 0),
        rescored=points if spec.pareto else spec.rescored,
        clock=clock,
    )
    clock.pace = pace.trial
    if clock.seconds is None:
        return known
    allowed = _UNPRUNED_SHARE * clock.left - pace.unpruned * known.calibration
    count = int(allowed / max(pace.unpruned, 1e-9))
    if count < min(there, _LEAST_HELD_OUT):
        needed = pace.unpruned * (known.calibration + _LEAST_HELD_OUT) / _UNPRUNED_SHARE
        spent = clock.seconds - clock.left
        fits = int(_UNPRUNED_SHARE * clock.left / max(pace.unpruned, 1e-9)) - _LEAST_HELD_OUT
        fewer = f", or --samples {fits}" if fits >= _LEAST_HELD_OUT else ""
        raise ConfigError(
            f"--timeout: received {clock.seconds:g}, allowed here about {spent + needed:.0f} or "
            f"more: the unpruned run of {known.calibration} calibration samples alone takes about "
            f"{shown(pace.unpruned * known.calibration)}; give more time{fewer}"
        )
    return replace(known, held_out=min(there, count))


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


def shown(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
