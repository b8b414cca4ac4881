"""Finds a study again: by its folder, its database file or a storage URL."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from prunetune.config import PruningConfig
from prunetune.errors import StudyError
from prunetune.secrets import redact
from prunetune.spec import StudySpec
from prunetune.study.database.connect import open_storage
from prunetune.study.database.place import locate
from prunetune.study.outcome.pareto import FOLDER, choose_point, front_file
from prunetune.study.outcome.record import FRONT, read_record
from prunetune.study.places import known_as
from prunetune.study.resumed import SPEC_FILE
from prunetune.study.study import CONFIG_FILE
from prunetune.study.trials.best import FINISHED
from prunetune.study.trials.trials import config_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prunetune.study.run import Step


@dataclass(frozen=True)
class Found:
    """A stored study.

    Attributes:
        study: Optuna's.
        spec: What it searches.
        url: Of its database; may hold a password.
        folder: The run's folder; None for a storage URL.
    """

    study: optuna.Study
    spec: StudySpec
    url: str
    folder: Path | None

    @property
    def shown(self) -> str:
        """The folder, or the URL without its password."""
        return redact(self.url) if self.folder is None else str(self.folder)


def find_study(target: str, name: str | None = None, spec: StudySpec | None = None) -> Found:
    """Open a stored study.

    Args:
        target: A run's folder, its ``study.db``, or a storage URL.
        name: Of the study, where the database holds several.
        spec: Of the study, where its name is not given.

    Raises:
        StudyError: There is none, or it cannot be read.
    """
    url, folder = locate(target)
    storage = open_storage(url, reading=True)
    names = optuna.get_all_study_names(storage)
    if name is None and spec is not None:
        name = known_as(spec, names)
    chosen = _name(names, name, folder, redact(target))
    study = optuna.load_study(study_name=chosen, storage=storage)
    try:
        attrs = study.user_attrs
    except ValueError as error:
        raise StudyError(
            f"study {chosen!r}: the database holds an attribute that is not JSON ({error}); "
            "restore it from a copy, or search anew"
        ) from None
    if "spec" not in attrs:
        raise StudyError(f"study {chosen!r} was not made by prunetune; choose another with --study")
    spec = StudySpec.parse(study.user_attrs["spec"], origin=f"study {chosen!r}")
    return Found(study, spec, url, folder)


def _name(names: list[str], wanted: str | None, folder: Path | None, shown: str) -> str:
    known = ", ".join(repr(name) for name in names) or "none"
    if wanted is None and len(names) > 1 and folder is not None and (folder / SPEC_FILE).exists():
        wanted = known_as(StudySpec.load(folder / SPEC_FILE), names)
    if wanted is None and len(names) == 1:
        return names[0]
    if not names:
        raise StudyError(f"{shown} holds no study yet; `prunetune search` makes one")
    if wanted is None or wanted not in names:
        asked = f"holds no study {wanted!r}" if wanted else f"holds {len(names)} studies"
        raise StudyError(f"{shown} {asked}; its studies: {known}; choose one with --study")
    return wanted


def chosen_trial(found: Found, trial: int | None, costs: "Mapping[str, float]") -> int | None:
    """Return which trial to export; None for the one that a search chose.

    Args:
        found: The study.
        trial: A trial's number, if one was asked for.
        costs: Bounds that were asked for, by kind of budget; only a study with a front has choice.

    Raises:
        StudyError: Too much, too little or the wrong thing was asked for, or no trial fits.
    """
    spec, flags = found.spec, [f"--{kind.replace('_', '-')}" for kind in costs]
    flag = f"--{spec.kind.replace('_', '-')}"
    if not spec.pareto:
        if flags:
            raise StudyError(
                f"{flags[0]}: study {found.study.study_name!r} was searched at one budget "
                f"({spec.label}), so there is nothing to choose; leave {flags[0]} out"
            )
        return trial
    if trial is None and list(costs) == [spec.kind]:
        return choose_point(found.study, spec, costs[spec.kind]).number
    if trial is not None and not flags:
        return trial
    if trial is None and not flags and spec.promise is not None:
        return _decided(found)
    asked = " and ".join([*flags, *(["--trial"] if trial is not None else [])]) or "neither"
    raise StudyError(
        f"study {found.study.study_name!r} has a front of metric and cost: received {asked}; "
        f"choose a point by {flag} or by --trial (see: prunetune status)"
    )


def _decided(found: Found) -> int:
    """Return the trial that keeps a study's promise."""
    record = read_record(found.study.user_attrs, FRONT) or {}
    decision = record.get("result", {}).get("decision") or {}
    if not record:
        raise StudyError(
            f"study {found.study.study_name!r} has not ended, so nothing is known of its promise; "
            "run the search to its end"
        )
    if decision.get("trial") is None:
        raise StudyError(
            f"study {found.study.study_name!r}: {record['result']['verdict']} Choose another point "
            "by its cost or by --trial"
        )
    return int(decision["trial"])


def files_of(found: Found, trial: int) -> list[Path]:
    """Return where a folder may have the config of a trial."""
    if found.folder is None:
        return []
    return [found.folder / CONFIG_FILE, front_file(found.folder / FOLDER, trial)]


def stored_config(found: Found, trial: int | None) -> PruningConfig | None:
    """Return the config a finished search wrote; None if it is another trial's, or out of date."""
    if found.folder is None:
        return None
    file = found.folder / CONFIG_FILE
    if found.spec.pareto and trial is not None:
        file = front_file(found.folder / FOLDER, trial)
    if not file.is_file():
        return None
    config = PruningConfig.load(file)
    made = config.provenance
    if made.study != found.study.study_name or (trial is not None and made.trial != trial):
        return None
    if made.created is None:
        return None
    try:
        written = datetime.fromisoformat(made.created).timestamp()
    except ValueError:
        # Edited by hand: nobody can say whether it is out of date.
        return None
    ended = [t.datetime_complete for t in found.study.get_trials(deepcopy=False)]
    later = any(end is not None and end.timestamp() > written + 1 for end in ended)
    return None if later and trial is None else config


def measured_config(
    found: Found,
    trial: int | None,
    *,
    skip_bad: bool = False,
    progress: "Callable[[Step], None]" = lambda step: None,
    **options: Any,
) -> PruningConfig:
    """Measure a trial (by default the best one) on both splits and return its config.

    Args:
        found: The study.
        trial: Number of the trial; None for the best one.
        skip_bad: Leave out bad pictures and rows instead of failing.
        progress: Called with every step's state.
        options: What ``load_model`` takes beside a name; the revision is the study's by default.

    Raises:
        StudyError: There is no such trial, or it has not finished.
    """
    from prunetune.measure.scores import measure
    from prunetune.models import load_model
    from prunetune.models.options import differing
    from prunetune.space.space import Space
    from prunetune.study.opening import warn_other_weights
    from prunetune.study.outcome.judging import judge_config, worth
    from prunetune.study.outcome.selection import Winner, choose, with_provenance
    from prunetune.study.prepare import Prepared, first_stages, load_data, usable
    from prunetune.study.run import Watched, evaluators

    config = None if trial is None else config_of(_trial(found, trial))
    if trial is None and not found.study.get_trials(deepcopy=False, states=FINISHED):
        raise StudyError(
            f"study {found.study.study_name!r} has no finished trial; run the search longer"
        )
    spec = found.spec
    sides = load_data(spec, skip_bad=skip_bad, wanted=found.study.user_attrs.get("digest"))
    options["revision"] = options.get("revision") or spec.revision
    options["processor"], _ = differing(spec.processor, options.get("processor"))
    loaded = load_model(spec.model, **options)
    calibration, held_out = usable(sides, loaded, skip_bad)
    first, levels = first_stages(spec, loaded, calibration)
    folder = found.folder or Path()
    prepared = Prepared(spec, folder, loaded, calibration, held_out, first, levels)
    own, second = evaluators(prepared, progress=progress)
    watched: Any = Watched(own, "calibration", None, progress)
    other: Any = Watched(second, "held-out", None, progress)
    if config is None or trial is None:
        winner = choose(found.study, spec, watched)
    else:
        results = measure(watched, config, answers=False)
        winner = Winner(trial, config, results, len(calibration))
    space = Space.of(spec, own.facts())
    warn_other_weights(found.study, space.facts.weights_digest)
    tuned = measure(other, winner.config)
    config = with_provenance(found.study, spec, space, winner, watched, tuned)
    return worth(config, judge_config(config, tuned, second))


def _trial(found: Found, number: int) -> Any:
    trials = found.study.get_trials(deepcopy=False)
    # Queued ones have numbers, too.
    ended = [trial.number for trial in trials if trial.state in FINISHED]
    if not 0 <= number < len(trials) and ended:
        gaps = "" if len(ended) == ended[-1] - ended[0] + 1 else f" ({len(ended)} finished ones)"
        raise StudyError(
            f"--trial: received {number}, allowed {ended[0]} to {ended[-1]}{gaps} in study "
            f"{found.study.study_name!r}"
        )
    if not ended:
        raise StudyError(
            f"--trial: received {number}, but study {found.study.study_name!r} has no finished "
            "trial; run the search longer"
        )
    if trials[number].state not in FINISHED:
        raise StudyError(
            f"--trial: trial {number} is {trials[number].state.name}; "
            "choose a complete or pruned trial"
        )
    return trials[number]
