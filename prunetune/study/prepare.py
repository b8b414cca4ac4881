"""What a search needs, loaded and checked before anything is computed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from prunetune.errors import ConfigError
from prunetune.models.embedded import is_embedded, shipped_data
from prunetune.spec import StudySpec
from prunetune.study.resumed import as_stored, check_moved, refuse_other

if TYPE_CHECKING:
    from prunetune.budget import Level
    from prunetune.calibration import CalibrationSet
    from prunetune.models.load import Loading
    from prunetune.study.database.storage import BatchedStorage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What a search needs, loaded and checked, before anything is computed.

    Attributes:
        spec: With the data source filled in.
        out: The run's folder.
        loaded: ``prunetune.models.LoadedModel``.
        calibration: Calibration split.
        held_out: Held-out split.
        deepest: Last layer at which a first stage can be.
        levels: Of pixels, that the search may choose.
        made: Folders that were made for the run, innermost first.
        done: Trials that the study has finished before.
    """

    spec: StudySpec
    out: Path
    loaded: Any
    calibration: "CalibrationSet"
    held_out: "CalibrationSet"
    deepest: int
    levels: "tuple[Level, ...]" = ()
    made: tuple[Path, ...] = ()
    done: int = 0

    @property
    def skipped(self) -> tuple[str, ...]:
        """One line for every picture or row that was left out as bad."""
        return (*self.calibration.skipped_names, *self.held_out.skipped_names)


def prepare(
    spec: StudySpec,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    skip_bad: bool = False,
    **loading: "Unpack[Loading]",
) -> Prepared:
    """Load and check everything that can be wrong, before anything is computed.

    Where something is, no folder is left behind that was not there before.
    """
    from prunetune.study.places import leaving_nothing

    if study_name == "":
        raise ConfigError("--study: received '', allowed a name; leave it out for the spec's own")
    folder = Path(out) if out is not None else default_folder(spec)
    with leaving_nothing(folder):
        return _prepare(spec, folder, storage, study_name, skip_bad, **loading)


def _prepare(
    spec: StudySpec,
    folder: Path,
    storage: str | None,
    study_name: str | None,
    skip_bad: bool,
    **loading: "Unpack[Loading]",
) -> Prepared:
    from prunetune.models import load_model
    from prunetune.study.database.connect import check_folder
    from prunetune.study.database.urls import DATABASE
    from prunetune.study.outcome.decision import check_enough
    from prunetune.study.places import located, missing

    made = missing(folder)
    given, spec = spec, with_data(spec)
    check_folder(folder)
    spec, stored, done = _gone_on_with(located(spec), folder, storage, study_name)
    if storage is None and study_name is None and (folder / DATABASE).exists():
        # Before minutes are spent; `run_trials` looks again, at what came meanwhile.
        refuse_other(folder, spec)
    sides = load_data(spec, skip_bad=skip_bad, wanted=stored.get("digest"))
    loaded = load_model(
        spec.model, revision=spec.revision, processor=spec.processor or None, **loading
    )
    if stored:
        loaded = _as_named(loaded, study_name or spec.study_name, stored, spec)
    calibration, held_out = usable(sides, loaded, skip_bad)
    if spec.promise is not None:
        answered = any(sample.answer is not None for sample in held_out.samples)
        check_enough(spec.promise, held_out.samples, answered)
    deepest, levels = first_stages(spec, loaded, calibration, new="spec" not in stored)
    if given.data is None and not is_embedded(spec.model):
        logger.warning(
            "no --data is given: calibrating %s on the shipped set 'tiny' of generated pictures; "
            "give pictures and questions like yours for a config that fits them",
            spec.model,
        )
    return Prepared(spec, folder, loaded, calibration, held_out, deepest, levels, made, done)


def with_data(spec: StudySpec) -> StudySpec:
    """Return the spec with its calibration source filled in."""
    if spec.data is not None:
        return spec
    return spec.model_copy(update={"data": shipped_data(spec.model)})


def default_folder(spec: StudySpec) -> Path:
    """Return ``studies/<model>-<budget>`` under the current folder."""
    name = spec.model.rstrip("/").rpartition("/")[2] or "model"
    return Path("studies") / f"{name}-{spec.label}"


def load_data(
    spec: StudySpec, *, skip_bad: bool = False, wanted: str | None = None
) -> "tuple[CalibrationSet, CalibrationSet]":
    """Load a spec's calibration and held-out samples; ``wanted`` is the digest of its study's."""
    from prunetune.calibration import load_sides

    return load_sides(
        spec.data or shipped_data(spec.model),
        spec.held_out,
        seed=spec.seed,
        samples=spec.samples,
        held_out_samples=spec.held_out_samples,
        skip_bad=skip_bad,
        template=spec.template_args,
        allow_remote=spec.allow_remote,
        wanted=wanted,
    )


def usable(
    sides: "tuple[CalibrationSet, CalibrationSet]", loaded: Any, skip_bad: bool
) -> "tuple[CalibrationSet, CalibrationSet]":
    """Return both sides; with ``skip_bad`` without what the model's processor refuses."""
    from prunetune.calibration import without_refused

    if not skip_bad:
        return sides
    one, two = (without_refused(loaded.processor, side) for side in sides)
    return one, two


def first_stages(
    spec: StudySpec, loaded: Any, calibration: "CalibrationSet", *, new: bool = False
) -> "tuple[int, tuple[Level, ...]]":
    """Return the last layer at which a first stage, of a trial or of a preset, can be.

    That is of full pictures: what is behind it, as smaller ones allow, costs the layers between.

    Args:
        spec: Of the study.
        loaded: ``prunetune.models.LoadedModel``.
        calibration: Calibration split.
        new: Whether the study is still to be made; see ``Space.check_ranges``.

    Returns:
        It, and the levels of pixels that may be chosen.

    Raises:
        ConfigError: The space's layers are not the model's, its budget cannot be attained, or a new
            one has ranges that do nothing.
    """
    from prunetune.budget import FLOOR
    from prunetune.measure.facts import early_facts
    from prunetune.scorers import SCORERS
    from prunetune.space.space import Space

    facts = early_facts(spec, loaded, calibration)
    first, depth = (spec.space.layers or (0, 0))[0], facts.num_layers
    if first >= depth:
        raise ConfigError(
            f"layers: received {first}, allowed 0 to {depth - 1} for a model of {depth} layers"
        )
    # It refuses what cannot be attained, with all that the space says: layers, scorers, floor.
    space = Space.of(spec, facts)
    if new:
        space.check_ranges()
    most, floor = space.most, min(FLOOR, spec.space.floor)
    if (last := facts.last_stage) is not None:
        logger.warning(
            "the search is narrowed to %s for %s: %s",
            *("layer 0" if last == 0 else f"layers 0 to {last}", spec.model, facts.limit),
        )
    missing = [name for name in SCORERS if name not in facts.scorers]
    if missing and not spec.space.scorers:
        logger.warning(
            "left out of the search: %s, whose inputs %s cannot give",
            *(", ".join(missing), spec.model),
        )
    if spec.space.pixels is not False and all(level.tokens >= 1 for level in facts.levels):
        logger.warning(
            "pixels are not searched: of the calibration pictures no level has fewer tokens than "
            "the full picture"
        )
    deepest = max(0, min(most.latest_first_layer(depth, floor), depth - 1))
    deepest = deepest if last is None else min(deepest, last)
    return deepest, facts.levels


def _as_named(loaded: Any, name: str, stored: Mapping[str, Any], spec: StudySpec) -> Any:
    """Return the model under the name that its study has for it.

    Configs name their model: under two names one config would be two, and be measured twice.

    Raises:
        StudyError: It is another model; told here, before minutes are spent.
    """
    from prunetune.models.fingerprint import weights_digest

    place = check_moved(name, stored, spec, weights_digest(loaded.model))
    return loaded if place is None else replace(loaded, name=place)


def _gone_on_with(
    spec: StudySpec, folder: Path, storage: str | None, name: str | None
) -> tuple[StudySpec, dict[str, Any], int]:
    """Return the spec as the study that it goes on with has it, its attributes, finished trials.

    Args:
        spec: With absolute paths.
        folder: The run's.
        storage: Database URL; None for SQLite in the folder.
        name: Of the study, if one was given.
    """
    from optuna import get_all_study_names

    from prunetune.study.database.connect import open_storage
    from prunetune.study.database.urls import DATABASE, storage_url
    from prunetune.study.places import known_as

    url = storage_url(folder, storage)
    file = url.removeprefix("sqlite:///")
    there = (folder / DATABASE).exists() if storage is None else file == url or Path(file).exists()
    if not there:
        # Opened, it would be made.
        return spec, {}, 0
    opened = open_storage(url)
    name = name or known_as(spec, get_all_study_names(opened))
    stored = _stored(opened, name)
    if "spec" not in stored:
        return spec, {}, 0
    return _as_stored(spec, stored), stored, _finished(opened, name)


def _finished(storage: "BatchedStorage", name: str) -> int:
    """Return how many trials of a study are finished."""
    from prunetune.study.trials.best import FINISHED

    study = storage.get_study_id_from_name(name)
    return len(storage.get_all_trials(study, deepcopy=False, states=FINISHED))


def _as_stored(spec: StudySpec, stored: Mapping[str, Any]) -> StudySpec:
    """Return the spec as a study of an older release has it, by that study's attributes."""
    from prunetune.study.places import as_located

    if "spec" not in stored:
        return spec
    before = StudySpec.parse(stored["spec"])
    return as_stored(as_located(spec, before), before)


def _stored(storage: "BatchedStorage", name: str) -> dict[str, Any]:
    """Return the attributes of the study of a name; none where there is none."""
    from prunetune.study.database.storage import quiet

    with quiet():
        try:
            return storage.get_study_user_attrs(storage.get_study_id_from_name(name))
        except KeyError:
            return {}
