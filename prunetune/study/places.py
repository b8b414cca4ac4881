"""Where a spec's model and data are: kept so that they are found from any folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunetune.calibration.options import read_options
from prunetune.errors import DataError
from prunetune.models.aliases import ALIASES
from prunetune.models.embedded import is_embedded
from prunetune.models.weights import existing
from prunetune.spec import StudySpec

FIELDS = ("model", "data", "held_out")
_HUB = "hf:"
_NO_PATHS = frozenset(alias.alias for alias in ALIASES)


def located(spec: StudySpec) -> StudySpec:
    """Return the spec with absolute paths in place of relative ones that are here."""
    given = {name: getattr(spec, name) for name in FIELDS}
    found = {name: _absolute(text) for name, text in given.items() if text}
    return spec.model_copy(update=found)


def as_located(spec: StudySpec, stored: StudySpec) -> StudySpec:
    """Return the spec with the places as a stored one names them, where they are the same.

    Studies of before hold relative paths. Where those led from is not known: it is enough that
    names are the same at the end, since the data's own digest is compared as well.
    """
    same = {
        name: getattr(stored, name)
        for name in FIELDS
        if _same(getattr(spec, name), getattr(stored, name))
    }
    return spec.model_copy(update=same)


def _same(now: str | None, before: str | None) -> bool:
    if now is None or before is None or now == before:
        return now == before
    if _absolute(now) == _absolute(before):
        return True
    path, was = _parts(now), _parts(before)
    if path is None or was is None or path[2] != was[2] or Path(was[1]).is_absolute():
        return False
    tail = [part for part in Path(was[1]).parts if part != ".."]
    return path[0] == was[0] and bool(tail) and list(Path(path[1]).parts[-len(tail) :]) == tail


def _absolute(text: str) -> str:
    """Return a source with its path made absolute; what is none, or not here, stays."""
    parts = _parts(text)
    if parts is None or existing(parts[1]) is None:
        return text
    hub, path, options = parts
    return f"{hub}{os.path.abspath(Path(path).expanduser())}{options}"


def _parts(text: str) -> tuple[str, str, str] | None:
    """Return ``hf:`` or nothing, the path, and the options with their question mark."""
    if text in _NO_PATHS or is_embedded(text):
        return None
    hub = _HUB if text.startswith(_HUB) else ""
    rest = text.removeprefix(hub)
    try:
        name, _ = read_options(rest)
    except DataError:
        # Whoever reads it says so.
        return None
    return hub, name, rest[len(name) :]


def missing(folder: Path) -> tuple[Path, ...]:
    """Return what is to be made of a folder and those around it, innermost first."""
    return tuple(path for path in (folder, *folder.parents) if not path.exists())


@contextmanager
def leaving_nothing(folder: Path) -> Iterator[None]:
    """Remove the folders made for a run that fails before anything is in them."""
    made = missing(folder)
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise


def remove_empty(folders: tuple[Path, ...]) -> None:
    """Remove folders, innermost first, up to the first that holds something."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:
            return
