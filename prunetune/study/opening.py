"""Creates a study or opens it again: its description, its first trials, its sampler."""

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna import Study
from optuna.study import StudyDirection

from prunetune.errors import ConfigError, StudyError
from prunetune.models.versions import versions
from prunetune.space.space import Space
from prunetune.space.starts import first_starts, starts
from prunetune.spec import FIRST_LOOK, StudySpec
from prunetune.study.database.leases import identity, is_dead
from prunetune.study.database.storage import BatchedStorage, quiet
from prunetune.study.places import as_located
from prunetune.study.resumed import check_moved, difference
from prunetune.study.trials.best import COST_NAMES
from prunetune.study.trials.samplers import Near, make_sampler, sampler_seed
from prunetune.study.trials.stopping import MeanWilcoxonPruner
from prunetune.study.trials.trials import presets_at

logger = logging.getLogger(__name__)

_CREATION_SECONDS = 30.0


@dataclass(frozen=True)
class Seat:
    """Which of a study's workers this is.

    Attributes:
        worker: Number among those that one command starts.
        shared: Whether commands elsewhere may work on the study.
    """

    worker: int
    shared: bool

    def seed(self, study: Study, seed: int, created: bool) -> int:
        """Return a sampler seed that no other worker has, and note who has it.

        One worker on its own gets the same one every time; among several no order is kept anyway.
        It is made of the worker's number and of how many trials there are. These only grow in
        number: two can have the same one only where nothing was drawn in between, and then the
        study says who was first. Of commands in one folder no two may ask at the same time.

        Args:
            study: That the worker draws for.
            seed: Of the study.
            created: Whether this worker made it.
        """
        trials, taken = len(study.get_trials(deepcopy=False)), study.user_attrs.get(self._key)
        if created or not (self.shared or _is_held(taken, trials)):
            study.set_user_attr(self._key, {"trials": trials, "process": identity()})
            return sampler_seed(seed, self.worker, trials)
        name = hashlib.sha256(f"{identity()}/{self.worker}".encode()).digest()
        return sampler_seed(seed, int.from_bytes(name[:8], "big"), trials)

    def leave(self, study: Study) -> None:
        """Let whoever resumes have the seed again, where nothing was drawn with it.

        Of a process on another machine, or before a restart, nobody can tell whether it has ended.
        """
        taken = study.user_attrs.get(self._key)
        if taken is None or taken["process"] != identity():
            return
        if taken["trials"] == len(study.get_trials(deepcopy=False)):
            study.set_user_attr(self._key, None)

    @property
    def _key(self) -> str:
        return f"seed of worker {self.worker}"


def _is_held(taken: Mapping[str, Any] | None, trials: int) -> bool:
    """Tell whether another process may still draw with what it took at so many trials."""
    if taken is None or taken["trials"] < trials or taken["process"] == identity():
        return False
    return not is_dead(taken["process"])


def open_study(
    spec: StudySpec, space: Space, storage: BatchedStorage, name: str, resume: bool, seat: Seat
) -> Study:
    """Create or open a study.

    Args:
        spec: Of the study.
        space: Decodes its points.
        storage: Its database.
        name: Of the study.
        resume: Whether it may exist.
        seat: Which of its workers asks.

    Raises:
        StudyError: It cannot be resumed.
        ConfigError: It is new and has ranges that do nothing.
    """
    with quiet():
        if spec.space.ranges and name not in optuna.get_all_study_names(storage):
            space.check_ranges()
        try:
            directions = [StudyDirection.MINIMIZE] * (2 if spec.pareto else 1)
            study = optuna.create_study(study_name=name, storage=storage, directions=directions)
            created = True
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=name, storage=storage)
            created = not _wait_described(study)
        if created:
            _describe(study, spec, space)
        else:
            spec = _check_resumable(study, spec, space, resume, seat.shared)
            if study.user_attrs["spec"] != (now := spec.model_dump(mode="json")):
                # How long it goes on may change; whoever looks shall see what it is now.
                study.set_user_attr("spec", now)
        storage.sweep(study._study_id)
        study.sampler = make_sampler(
            spec.sampler,
            seat.seed(study, spec.seed, created),
            spec.startup,
            len(study.directions),
            spec.start,
            spec.seed,
            Near(spec.refine, lambda units: space.decode(units).digest()),
        )
        study.pruner = (
            MeanWilcoxonPruner(p_threshold=0.1, n_startup_steps=FIRST_LOOK)
            if spec.trial_pruner == "wilcoxon"
            else optuna.pruners.NopPruner()
        )
    return study


def _wait_described(study: Study) -> bool:
    """Wait until the worker that made a study has described it; False if it died over that."""
    deadline = time.monotonic() + _CREATION_SECONDS
    while "spec" not in study.user_attrs:
        ours = "model" in study.user_attrs or not study.get_trials(deepcopy=False)
        if not ours or time.monotonic() > deadline:
            return not ours
        time.sleep(0.1)
    return True


def _describe(study: Study, spec: StudySpec, space: Space) -> None:
    for name, value in {
        "model": spec.model,
        "budget": spec.budget,
        "digest": space.facts.calibration_digest,
        "order": space.facts.calibration_order,
        "weights_digest": space.facts.weights_digest,
        "seed": spec.seed,
        "versions": versions(),
    }.items():
        study.set_user_attr(name, value)
    study.set_metric_names([spec.metric, *([COST_NAMES[spec.kind]] if spec.pareto else [])])
    _enqueue(study, spec, space)
    # Last: workers that find it take the study for complete.
    study.set_user_attr("spec", spec.model_dump(mode="json"))


def _check_resumable(
    study: Study, spec: StudySpec, space: Space, resume: bool, shared: bool
) -> StudySpec:
    """Return the spec with the places as the study names them."""
    name, attrs = study.study_name, study.user_attrs
    if not resume:
        raise StudyError(
            f"study {name!r} exists already; resume it, or choose another --out or --study"
        )
    if "spec" not in attrs:
        raise StudyError(f"study {name!r} was not made by prunetune; choose another --study")
    try:
        before = StudySpec.parse(attrs["spec"])
    except ConfigError as error:
        raise StudyError(f"study {name!r} holds a spec this release cannot read: {error}") from None
    named = as_located(spec, before, shared)
    fields = difference(before, named)
    if attrs.get("digest") != space.facts.calibration_digest:
        fields.append("calibration data")
    elif attrs.get("order") not in (None, space.facts.calibration_order):
        # Trials are compared sample by sample, by the number of the sample.
        fields.append("the order of the calibration samples, which follows the pictures' names")
    if fields:
        raise StudyError(
            f"study {name!r} cannot be resumed with another spec: {', '.join(fields)}; give the "
            "stored values, or choose another --out or --study"
        )
    if check_moved(name, attrs, spec, space.facts.weights_digest) is None:
        warn_other_weights(study, space.facts.weights_digest)
    _warn_other_versions(study)
    return named


def other_weights(attrs: Mapping[str, Any], digest: str | None) -> bool:
    """Tell whether a study was made with weights of another digest; studies of old keep none."""
    stored = attrs.get("weights_digest")
    return stored is not None and digest is not None and stored != digest


def warn_other_weights(study: Study, digest: str | None) -> None:
    """Say so where a study is gone on with under other weights than it was made with."""
    if other_weights(study.user_attrs, digest):
        logger.warning(
            "study %r was made with other weights of the model, or in another number format: its "
            "figures and new ones are not measured alike; search anew with another --out or "
            "--study, or load what it was made with",
            study.study_name,
        )


def _warn_other_versions(study: Study) -> None:
    """Say so where new trials run under other releases than those before."""
    stored, now = study.user_attrs.get("versions", {}), versions()
    changed = [
        f"{name} {stored[name]} (now {now[name]})"
        for name in ("prunetune", "torch", "transformers")
        if name in stored and name in now and stored[name] != now[name]
    ]
    if changed:
        logger.warning(
            "study %r was made with %s: its figures and new ones may not be measured alike",
            *(study.study_name, ", ".join(changed)),
        )


_BEST = 4
"""Of the first starts, those that lead at some budget of the embedded model."""


def _enqueue(study: Study, spec: StudySpec, space: Space) -> None:
    for name, units in first_starts(space).items():
        study.enqueue_trial(units, user_attrs={"start": name}, skip_if_exists=True)
    # The best of them all over a range, too: a front has many places to be found.
    for unit in (0.0, 0.25, 0.75, 1.0) if space.ranges else ():
        for name, units in list(first_starts(space, space.budget_at(unit)).items())[:_BEST]:
            study.enqueue_trial(units, user_attrs={"start": name}, skip_if_exists=True)
    budgets = [space.least, space.budget, space.most] if space.ranges else [space.budget]
    for preset in (p for budget in budgets for p in presets_at(spec.presets, space, budget)):
        if preset.config is None or not space.holds(preset.config):
            logger.info("preset %s is not enqueued: %s", preset.name, preset.note or "not searched")
            continue
        # What is measured is the preset itself; the point only tells the sampler where it lies.
        attrs = {
            "preset": preset.name,
            "note": preset.note,
            "given": preset.config.model_dump(mode="json"),
        }
        study.enqueue_trial(space.encode(preset.config), user_attrs=attrs, skip_if_exists=True)
    for name, units in starts(space).items():
        study.enqueue_trial(units, user_attrs={"start": name}, skip_if_exists=True)
