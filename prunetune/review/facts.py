"""What a stored study says: trials, best and front, as plain data for plots, notes and pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.provenance import Judged, Saving
from prunetune.review.trial_facts import TrialFacts
from prunetune.spec import StudySpec
from prunetune.study.outcome.promise import knee
from prunetune.study.outcome.record import FRONT, read_record
from prunetune.study.outcome.savings import saving_of

__all__ = ["UNITS", "StudyFacts", "TrialFacts", "study_facts"]

UNITS = {
    "cosine": "gap (1 - cosine)",
    "kl": "KL of the next token (nats)",
    "cosine+kl": "gap + KL (nats)",
    "kl-answer": "KL along the unpruned answer (nats)",
    "mean_retention": "mean retention (share of image tokens)",
    "flops_ratio": "prefill FLOPs (share of unpruned)",
    "kv_mib": "visual KV cache (MiB)",
}
"""A metric as an axis calls it."""
_SHORT = {
    "cosine": "gap",
    "kl": "KL",
    "cosine+kl": "gap + KL",
    "kl-answer": "KL along the answer",
    "mean_retention": "mean retention",
    "flops_ratio": "share of prefill FLOPs",
    "kv_mib": "visual KV cache",
}
_STATES = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed"}


@dataclass(frozen=True)
class StudyFacts:
    """A study.

    Attributes:
        name: Of the study.
        spec: What it searches.
        metrics: One name an objective.
        maximised: One flag an objective.
        trials: All of them, by number.
        attrs: The study's user attributes.
        record: What the search ended with, as far as it did; see ``study.outcome.record``.
        front_record: The same of a search for a front.
    """

    name: str
    spec: StudySpec
    metrics: tuple[str, ...]
    maximised: tuple[bool, ...]
    trials: tuple[TrialFacts, ...]
    attrs: Mapping[str, Any] = field(repr=False)
    record: Mapping[str, Any] | None = field(repr=False)
    front_record: Mapping[str, Any] | None = field(repr=False)

    @cached_property
    def complete(self) -> tuple[TrialFacts, ...]:
        """Trials that were measured on all samples."""
        return tuple(t for t in self.trials if t.complete and t.measured)

    @cached_property
    def ranked(self) -> tuple[TrialFacts, ...]:
        """Trials of different configs, best by the first objective first, with estimates."""
        found: dict[str, TrialFacts] = {}
        measured = [t for t in self.trials if t.measured]
        for trial in sorted(measured, key=lambda t: (self.loss(t), not t.complete, t.number)):
            found.setdefault(str(trial.attrs.get("config_digest", trial.number)), trial)
        return tuple(found.values())

    @cached_property
    def best(self) -> TrialFacts | None:
        """The trial that was chosen, else the best complete one, else the best estimate.

        With two objectives: the one that ships, or the front's knee.
        """
        if self.settled and self.detail is not None:
            chosen = next((t for t in self.trials if t.number == self.detail["trial"]), None)
            if chosen is not None and chosen.config is not None:
                return chosen
        if len(self.metrics) == 2 and self.front:
            return self.knee
        complete = [t for t in self.ranked if t.complete]
        return next(iter([*complete, *self.ranked]), None)

    @cached_property
    def front(self) -> frozenset[int]:
        """Numbers of the complete trials that no other one beats.

        With one objective: in metric and mean retention; else in all objectives.
        """
        points = {t.number: self._cost(t) for t in self.complete}
        known = {n: cost for n, cost in points.items() if all(math.isfinite(c) for c in cost)}
        # By cost, so that only those before can beat one: 500 trials take no time.
        kept: list[tuple[int, tuple[float, ...]]] = []
        for number, cost in sorted(known.items(), key=lambda item: (item[1], item[0])):
            if not any(all(a <= b for a, b in zip(other, cost)) for _, other in kept):
                kept.append((number, cost))
        return frozenset(number for number, _ in kept)

    @cached_property
    def along(self) -> tuple[TrialFacts, ...]:
        """The trials of the front, the cheapest first."""
        last = len(self.metrics) - 1
        members = [t for t in self.complete if t.number in self.front]
        return tuple(sorted(members, key=lambda t: (self.loss(t, last), t.number)))

    @cached_property
    def knee(self) -> TrialFacts | None:
        """The trial at the front's bend; None where there is no front of two objectives."""
        if len(self.metrics) != 2 or not self.along:
            return None
        return self.along[knee([(self.loss(t, 1), self.loss(t)) for t in self.along])]

    def _cost(self, trial: TrialFacts) -> tuple[float, ...]:
        signs = [-1.0 if up else 1.0 for up in self.maximised]
        cost = tuple(sign * value for sign, value in zip(signs, trial.values))
        if len(cost) > 1:
            return cost
        retention = trial.retention
        # To 1e-6: every trial meets the budget to a rounding error, which nobody ordered.
        return (*cost, math.nan if retention is None else round(retention, 6))

    def loss(self, trial: TrialFacts, objective: int = 0) -> float:
        """Return an objective so that lower is better; infinite where it is not known."""
        if objective >= len(trial.values):
            return math.inf
        value = trial.values[objective]
        return -value if self.maximised[objective] else value

    @property
    def detail(self) -> Mapping[str, Any] | None:
        """What is known sample by sample: of the result, or of a front's point that is shown."""
        if self.record is not None:
            return self.record
        known = self.front_record
        return known if known is not None and "configs" in known else None

    @property
    def judged(self) -> Judged | None:
        """What the result is worth; None before the end, and where a release did not say."""
        try:
            return Judged.model_validate((self.result or {}).get("judged"))
        except ValidationError:
            return None

    def saving(self, trial: int | None) -> Saving | None:
        """What a trial's config saves on a device; None where it was not measured."""
        return saving_of(self.attrs, trial)

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What the search ended with, as ``search --json`` prints it; None before it has."""
        record = self.record or self.front_record
        return None if record is None else record["result"]

    @property
    def settled(self) -> bool:
        """Whether the search ended and no trial has finished since."""
        ended = sum(t.state in _STATES.values() for t in self.trials)
        record = self.record or self.front_record
        return record is not None and record.get("ended") == ended

    @property
    def running(self) -> int:
        """Trials that run now."""
        return sum(t.state == "running" for t in self.trials)

    @property
    def finished(self) -> int:
        """Trials that are complete or were stopped early."""
        return sum(t.state in ("complete", "stopped early") for t in self.trials)

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model; 0 before a trial says so."""
        return next((t.config.model.num_layers for t in self.trials if t.config), 0)

    @property
    def sample_count(self) -> int:
        """Calibration samples, as far as a complete trial tells."""
        return max((len(t.samples) for t in self.complete), default=0)

    def short(self, objective: int = 0) -> str:
        """Return an objective as a sentence calls it."""
        name = self.metrics[objective]
        return _SHORT.get(name, name)

    def axis(self, objective: int = 0) -> str:
        """Return an objective as an axis calls it."""
        name = self.metrics[objective]
        return UNITS.get(name, name)


def study_facts(study: Study, spec: StudySpec | None = None) -> StudyFacts:
    """Read a study; one query of its trials.

    Args:
        study: Optuna's.
        spec: By default the one it stores.

    Raises:
        ConfigError: It stores no spec that this release can read.
    """
    attrs = study.user_attrs
    directions = study.directions
    names = study.metric_names or []
    spec = spec or StudySpec.parse(attrs.get("spec"), origin=f"study {study.study_name!r}")
    if len(names) != len(directions):
        many = len(directions) > 1
        names = [f"objective {k + 1}" for k in range(len(directions))] if many else [spec.metric]
    trials = study.get_trials(deepcopy=False)
    reports = (len(t.intermediate_values) for t in trials if t.state.name == "COMPLETE")
    total = max(reports, default=0)
    return StudyFacts(
        name=study.study_name,
        spec=spec,
        metrics=tuple(names),
        maximised=tuple(d == StudyDirection.MAXIMIZE for d in directions),
        trials=tuple(_trial(t, len(directions), total) for t in trials),
        attrs=attrs,
        record=read_record(attrs),
        front_record=read_record(attrs, FRONT),
    )


def _trial(trial: FrozenTrial, objectives: int, total: int) -> TrialFacts:
    samples = trial.intermediate_values
    if trial.state.name == "PRUNED" and samples and len(samples) > 1:
        # The last report of a trial that was stopped early is the estimate of its mean.
        last = max(samples)
        if last >= (total or int(trial.user_attrs.get("samples_used", last))):
            samples = {step: value for step, value in samples.items() if step != last}
    return TrialFacts(
        number=trial.number,
        state=_STATES.get(trial.state.name, trial.state.name.lower()),
        values=_finite(trial.values if trial.state.is_finished() else None, objectives),
        config=_config(trial.user_attrs),
        attrs=trial.user_attrs,
        samples=samples,
        seconds=trial.duration.total_seconds() if trial.duration else None,
    )


def _finite(values: Sequence[float] | None, count: int) -> tuple[float, ...]:
    known = tuple(values or ())
    return known if len(known) == count and all(math.isfinite(v) for v in known) else ()


def _config(attrs: Mapping[str, Any]) -> PruningConfig | None:
    try:
        return PruningConfig.parse(attrs["config"]) if "config" in attrs else None
    except ConfigError:
        # Such as a scorer of a package that is not installed here: the rest can still be shown.
        return None
