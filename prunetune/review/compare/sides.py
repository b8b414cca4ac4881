"""What people name when they compare: a config file, a study, or one trial of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.budget import kv_ratio, mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, StudyError
from prunetune.files import is_database
from prunetune.hub.uris import is_uri
from prunetune.pixels import shrinks

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from prunetune.spec import StudySpec
    from prunetune.study.find import Found

FIGURES = (
    "gap",
    "held_out_gap",
    "top1_agreement",
    "accuracy",
    "mean_retention",
    "flops_ratio",
    "kv_ratio",
)
_TRIAL = re.compile(r"(?P<study>\w[\w+]*://[^/]*/.+|(?!\w[\w+]*://).+):(?P<trial>\d+)")


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: As it was given, without a password.
        config: What it prunes.
        figures: What is known of it, by the names in ``FIGURES``; None where nothing is.
        note: What the figures rest on, where that is not the whole calibration split.
        spec: Of its study; None for a config file.
    """

    name: str
    config: PruningConfig
    figures: dict[str, float | None]
    note: str = ""
    spec: "StudySpec | None" = field(default=None, repr=False)

    @property
    def processor(self) -> dict[str, Any]:
        """Options of the processor that it was searched with."""
        if self.spec is not None:
            return self.spec.processor
        return self.config.provenance.processor or {}


def read_side(target: str, trial: int | None = None, study: str | None = None) -> Side:
    """Read a config file, ``STUDY:N``, or a study's trial (by default its best one).

    Args:
        target: A config file, of this machine or of the hub (``hf://org/name/file``); or a run's
            folder, its ``study.db`` or a storage URL, with or without ``:N``.
        trial: Number of the trial, for a study without ``:N``.
        study: Name of the study, where a database holds several.

    Raises:
        PrunetuneError: There is no such thing, or it cannot be read; one line.
    """
    if "://" not in target and not is_uri(target) and not Path(split_trial(target)[0]).exists():
        raise ConfigError(
            f"received {target!r}, which does not exist; allowed: a config file, a folder that "
            "`prunetune search` wrote, or STUDY:N for one of its trials"
        )
    if not is_study(target):
        if trial is not None:
            raise ConfigError(f"--trial: {target!r} is a config file, which has no trials")
        config = PruningConfig.load(target)
        return Side(target, config, _of_provenance(config))
    from prunetune.study.find import find_study

    folder, number = split_trial(target)
    if number is not None and trial is not None:
        raise ConfigError(f"--trial: received {trial}, but {target!r} names a trial already")
    number = trial if number is None else number
    return _of_study(find_study(folder, study), number)


def split_trial(target: str) -> tuple[str, int | None]:
    """Return the study and the number of ``STUDY:N``; None for the number where there is none."""
    found = _TRIAL.fullmatch(target)
    if found is None or Path(target).exists():
        return target, None
    return found["study"], int(found["trial"])


def is_study(target: str) -> bool:
    """Tell whether ``target`` names a study or a trial, and not a config file."""
    if is_uri(target):
        return False
    place, number = split_trial(target)
    path = Path(place)
    if number is not None or "://" in target or path.is_dir():
        return True
    try:
        return path.stat().st_size > 0 and is_database(path)
    except (OSError, ValueError):
        return False


def _of_provenance(config: PruningConfig) -> dict[str, float | None]:
    known = {name: getattr(config.provenance, name, None) for name in FIGURES}
    return known | _computed(config)


def _computed(config: PruningConfig) -> dict[str, float | None]:
    """Return the figures that follow from the schedule alone."""
    if shrinks(config.pixels):
        # A share of the full pictures' tokens, which only pictures tell: see the provenance.
        return {}
    depth = config.model.num_layers
    return {
        "mean_retention": mean_retention(config.stages, depth),
        "kv_ratio": kv_ratio(config.stages, depth),
    }


def _of_study(found: "Found", number: int | None) -> Side:
    from prunetune.study.find import stored_config
    from prunetune.study.trials.trials import config_of

    stored = stored_config(found, number)
    if stored is not None and stored.provenance.trial is not None:
        number = stored.provenance.trial
    trials = found.study.get_trials(deepcopy=False)
    trial = _best(found, trials) if number is None else _numbered(found, trials, number)
    config = config_of(trial)
    figures = {name: trial.user_attrs.get(name) for name in FIGURES} | _computed(config)
    if stored is not None:
        # Of all samples, and measured again at the end of the search.
        figures |= {k: v for k, v in _of_provenance(stored).items() if v is not None}
        config = stored
    name = f"{found.shown}:{trial.number}"
    return Side(name, config, figures, _note(trial, stored is not None), found.spec)


def _best(found: "Found", trials: "Sequence[FrozenTrial]") -> "FrozenTrial":
    if len(found.study.directions) > 1:
        raise StudyError(
            f"study {found.study.study_name!r} has a front of metric and cost, so no one best "
            f"trial; name one of the front (see: prunetune status){_such_as(found)}"
        )
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        raise StudyError(
            f"study {found.study.study_name!r} has no complete trial; run the search longer"
        )
    best: Any = min(complete, key=lambda trial: (trial.values, trial.number))
    return best  # type: ignore[no-any-return]


def _such_as(found: "Found") -> str:
    from prunetune.study.trials.best import front

    points = front(found.study)
    return f", such as {found.shown}:{points[len(points) // 2].number}" if points else ""


def _numbered(found: "Found", trials: "Sequence[FrozenTrial]", number: int) -> "FrozenTrial":
    if number >= len(trials):
        allowed = f"allowed 0 to {len(trials) - 1}" if trials else "but it has no trials"
        raise StudyError(f"trial: received {number}, {allowed} in study {found.study.study_name!r}")
    return trials[number]


def _note(trial: "FrozenTrial", rescored: bool) -> str:
    if trial.state.name == "PRUNED" and not rescored:
        used = trial.user_attrs.get("samples_used", "some")
        return f"stopped early: its figures are means over {used} samples"
    return ""
