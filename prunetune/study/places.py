"""Where a spec's model and data are: kept so that they are found from any folder."""

import os
from collections.abc import Iterable, Iterator
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


def known_as(spec: StudySpec, names: Iterable[str]) -> str:
    """Return the name that a spec's study has in a database.

    Releases before named it after the whole path of a model's folder: such a study is gone on with.

    Args:
        spec: What is searched.
        names: Of the database's studies.
    """
    ending, place = f"/{spec.label}/{spec.metric}", _absolute(spec.model)
    for name in names:
        before = name.removesuffix(ending)
        # The end first: a look at the disk for every study of others would be too much.
        if before != name and Path(before).name == Path(place).name and _absolute(before) == place:
            return name
    return spec.study_name


def as_located(spec: StudySpec, stored: StudySpec, anywhere: bool = False) -> StudySpec:
    """Return the spec with the places as a stored one names them, where they are the same.

    Studies of before hold relative paths. Where those led from is not known: it is enough that
    names are the same at the end, since the data's own digest is compared as well.

    Args:
        spec: What is searched.
        stored: The study's.
        anywhere: Whether other machines, with other folders, may work on the study: what has the
            same name at the end may be the same. Digests of data and weights tell; see
            ``resumed.check_moved``.
    """
    same = {
        name: getattr(stored, name)
        for name in FIELDS
        if _same(getattr(spec, name), getattr(stored, name), anywhere)
    }
    return spec.model_copy(update=same)


def _same(now: str | None, before: str | None, anywhere: bool) -> bool:
    if now is None or before is None or now == before:
        return now == before
    if _absolute(now) == _absolute(before):
        return True
    path, was = _parts(now), _parts(before)
    if path is None or was is None or path[0] != was[0] or path[2] != was[2]:
        return False
    here, there = Path(path[1]), Path(was[1])
    if there.is_absolute():
        return anywhere and here.is_absolute() and here.name == there.name
    tail = [part for part in there.parts if part != ".."]
    return bool(tail) and list(here.parts[-len(tail) :]) == tail


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
