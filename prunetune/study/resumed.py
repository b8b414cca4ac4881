"""Whether a study of before goes on with a spec of now."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from prunetune.errors import StudyError
from prunetune.space.narrowed import FIRST_RESTORERS
from prunetune.spec import StudySpec

SPEC_FILE = "spec.toml"

FREE_FIELDS = frozenset({"trials", "timeout", "patience", "match", "allow_remote"})
"""What may differ when a study is resumed: how long is searched, and how answers count, not what is
minimised."""


def difference(stored: StudySpec, now: StudySpec) -> list[str]:
    """Return what keeps a study from being resumed, one ``field (stored -> now)`` each."""
    before, after = _flat(stored.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return [
        f"{field} ({before.get(field)!r} -> {after.get(field)!r})"
        for field in sorted({*before, *after} - FREE_FIELDS)
        if before.get(field) != after.get(field)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def as_stored(spec: StudySpec, stored: StudySpec) -> StudySpec:
    """Return the spec that goes on with a study of before there were selectors.

    The same command means what it meant then, unless it names what has come since.
    """
    if stored.space.version != 1 or spec.space.version == 1:
        return spec
    unsaid = {"version"} | {"selectors", "mass", "per_crop"} - spec.space.model_fields_set
    if stored.space.restorers == FIRST_RESTORERS:
        unsaid |= {"restorers"} - spec.space.model_fields_set
    before = {name: getattr(stored.space, name) for name in unsaid}
    return spec.model_copy(update={"space": spec.space.model_copy(update=before)})


def refuse_other(folder: Path, spec: StudySpec, names: Container[str] | None = None) -> None:
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
    if names is not None and stored.study_name not in names:
        return
    if fields := difference(stored, as_stored(spec, stored)):
        raise StudyError(
            f"{folder} holds a study with another spec: {', '.join(fields)}; give the stored "
            "values to resume it, or choose another folder with --out"
        )
