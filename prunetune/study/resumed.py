"""Whether a study of before goes on with a spec of now."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from prunetune.errors import StudyError
from prunetune.space.narrowed import FIRST_RESTORERS
from prunetune.space.ranges import idle
from prunetune.spec import StudySpec
from prunetune.study.places import as_located, known_as

SPEC_FILE = "spec.toml"

FREE_FIELDS = frozenset({"trials", "timeout", "patience", "match", "allow_remote"})
"""What may differ when a study is resumed: how long is searched, and how answers count, not what is
minimised."""


def difference(stored: StudySpec, now: StudySpec) -> list[str]:
    """Return what keeps a study from being resumed, one ``field (stored -> now)`` each."""
    return [
        f"{field} ({before!r} -> {after!r})"
        for field, before, after in differing(stored, now)
        if field not in FREE_FIELDS
    ]


def differing(one: StudySpec, other: StudySpec) -> list[tuple[str, Any, Any]]:
    """Return the fields in which two specs differ, with both values, by name."""
    before, after = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    pairs = ((field, before.get(field), after.get(field)) for field in sorted({*before, *after}))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def as_stored(spec: StudySpec, stored: StudySpec) -> StudySpec:
    """Return the spec that goes on with a study of an earlier release.

    The same command means what it meant then, unless it names what has come since there were
    selectors. Ranges of parts that are not searched did nothing, and do nothing.
    """
    from prunetune.restorers import RESTORERS
    from prunetune.scorers import SCORERS

    left = idle(stored.space.ranges, (*SCORERS, *stored.space.selectors, *RESTORERS))
    if lacking := {n: stored.space.ranges[n] for n in left if n not in spec.space.ranges}:
        ranges = {**spec.space.ranges, **lacking}
        spec = spec.model_copy(update={"space": spec.space.model_copy(update={"ranges": ranges})})
    if stored.space.version != 1 or spec.space.version == 1:
        return spec
    unsaid = {"version"} | {"selectors", "mass", "per_crop"} - spec.space.model_fields_set
    if stored.space.restorers == FIRST_RESTORERS:
        unsaid |= {"restorers"} - spec.space.model_fields_set
    before = {name: getattr(stored.space, name) for name in unsaid}
    return spec.model_copy(update={"space": spec.space.model_copy(update=before)})


def check_moved(
    name: str, attrs: Mapping[str, Any], spec: StudySpec, digest: str | None
) -> str | None:
    """Return the place of a study's model where it is another than the spec's, for the same model.

    A study is named after the last part of a model's folder, which many models may have.

    Args:
        name: Of the study.
        attrs: The study's.
        spec: What is searched now, with the places that are here.
        digest: Of the weights that are here.

    Raises:
        StudyError: The models are named alike, and not known to have the same weights.
    """
    before = StudySpec.parse(attrs["spec"])
    near, far = as_located(spec, before).model, as_located(spec, before, True).model
    if near == before.model or far != before.model:
        return None
    known = attrs.get("weights_digest")
    if None in (known, digest) or known != digest:
        which = "are others" if known and digest else "are not known to be the same"
        raise StudyError(
            f"study {name!r} was made with the model in {before.model!r}; the weights in "
            f"{spec.model!r} {which} (another number format makes others, too: see --dtype); "
            "search another model under a name of its own with --study"
        )
    return before.model


def refuse_other(folder: Path, spec: StudySpec, names: Collection[str] | None = None) -> None:
    """Refuse a folder that is another study's, before anything of it is written over.

    Args:
        folder: The run's.
        spec: What is searched now.
        names: Of the studies in its database; None: not looked at.

    Raises:
        StudyError: It is.
    """
    if not (folder / SPEC_FILE).exists():
        return
    stored = StudySpec.load(folder / SPEC_FILE)
    if names is not None and known_as(stored, names) not in names:
        return
    if fields := difference(stored, as_stored(as_located(spec, stored), stored)):
        raise StudyError(
            f"{folder} holds a study with another spec: {', '.join(fields)}; give the stored "
            "values to resume it, or choose another folder with --out"
        )
