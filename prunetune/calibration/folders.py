"""Folders of pictures: what lies in them, zipped or not, and what is passed over."""

import logging
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from prunetune.calibration.pictures import SUFFIXES, Source
from prunetune.calibration.references import Member
from prunetune.errors import DataError
from prunetune.files import MOST_TABLE, read_plain

logger = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
_PASSED_OVER = frozenset(
    f".{kind}"
    for kind in (
        *("svg", "pdf", "psd", "eps", "ico", "tga", "jp2", "j2k"),
        *("dng", "cr2", "nef", "arw", "raw", "mp4", "mov", "webm", "avi"),
    )
)
_ROWS = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet"})
# What tools leave beside pictures, and nobody takes for questions.
_OTHERS = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "package.json"})
_TABLES = ("dataset_dict.json", "state.json", "dataset_info.json")


@dataclass(frozen=True)
class Tree:
    """The files of a folder or of a zip archive, and of the archives in it.

    Args:
        root: The folder, or the archive.
        files: Name of each file below it, with ``/``, to where it is.
    """

    root: Path
    files: dict[str, Source]

    @classmethod
    def of(cls, root: Path) -> "Tree":
        """List a folder or an archive; hidden files and folders are not in the list.

        Raises:
            DataError: An archive is none.
        """
        if root.is_file():
            return cls(root, dict(_archived(root, "")))
        files: dict[str, Source] = {}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if _hidden(name) or not path.is_file():
                continue
            files[name] = Source(str(path), partial(read_plain, path))
            if path.suffix.lower() == ".zip":
                files.update(_archived(path, f"{name}/"))
        return cls(root, files)

    @classmethod
    def beside(cls, path: Path) -> "Tree":
        """List the archives beside a file; other files there are found by their names."""
        files: dict[str, Source] = {}
        for archive in sorted(path.parent.glob("*.zip")):
            # Of what lies there by chance nothing is said; a pipe would keep us waiting.
            if not archive.is_file():
                continue
            files[archive.name] = Source(str(archive), partial(read_plain, archive, MOST_TABLE))
            files.update(_archived(archive, f"{archive.name}/"))
        return cls(path.parent, files)

    def pictures(self) -> dict[str, Source]:
        """Return the files that are pictures by their names."""
        return {n: s for n, s in self.files.items() if _suffix(n) in SUFFIXES}

    def find(self, name: str) -> Source | None:
        """Return the file of a name, also where its folder is zipped."""
        plain = PurePosixPath(name.replace("\\", "/")).as_posix()
        if plain in self.files:
            return self.files[plain]
        for archive in (n for n in self.files if _suffix(n) == ".zip"):
            stem = archive[: -len(".zip")]
            for inside in (plain, plain.removeprefix(f"{stem}/")):
                if (found := self.files.get(f"{archive}/{inside}")) is not None:
                    return found
        return None

    def metadata(self) -> list[str]:
        """Return the names of the metadata files, none below another."""
        names = [n for n in self.files if PurePosixPath(n).name == METADATA]
        folders = {n: n[: -len(METADATA)] for n in names}
        return [
            n for n in names if not any(o != n and folders[n].startswith(folders[o]) for o in names)
        ]

    def warn_passed_over(self, read: Iterable[str]) -> list[str]:
        """Return what a person may think is read and is not, one line each.

        Args:
            read: Names of metadata files that are read.
        """
        notes = []
        if not any(read):
            for name in self.files:
                if _suffix(name) in _ROWS and PurePosixPath(name).name not in _OTHERS:
                    notes.append(
                        f"{self.root / name} is not read: the rows of a folder are those of "
                        f"{METADATA}; rename it, or give the file itself as the source"
                    )
        kinds = Counter(_suffix(name) for name in self.files if _suffix(name) in _PASSED_OVER)
        if kinds:
            shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            notes.append(f"{self.root}: passed over as no pictures that are read: {shown}")
        return notes[:5]


def is_table(folder: Path) -> bool:
    """Tell whether a folder holds a table of ``datasets``, parquet files or the like."""
    if any((folder / name).is_file() for name in _TABLES):
        return True
    found = (p for p in folder.rglob("*") if not _hidden(p.relative_to(folder).as_posix()))
    return any(path.suffix.lower() in (".parquet", ".arrow") for path in found)


def _archived(path: Path, before: str) -> Iterable[tuple[str, Source]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a zip archive ({error}); restore it") from error
    for name in names:
        plain = PurePosixPath(name.replace("\\", "/")).as_posix()
        if not _hidden(plain):
            yield f"{before}{plain}", Source(f"{path}/{plain}", Member(str(path), name))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
