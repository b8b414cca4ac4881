"""Where a picture's bytes are: what a cell or a message says about it."""

import base64
import binascii
import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

from prunetune.calibration.pictures import SUFFIXES, Source
from prunetune.calibration.rows import RowError, missing
from prunetune.errors import DataError
from prunetune.files import open_plain, read_plain
from prunetune.models.weights import existing

_MOST_BYTES = 256 << 20
_SECONDS = 20.0
_REMOTE = ("http://", "https://")
# The first letters of PNG, JPEG, WebP, GIF, BMP and TIFF; a long name is none.
_BASE64 = re.compile(r"(?:iVBORw|/9j/|UklGR|R0lGOD|Qk|SUkq|TU0AK)[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")


@dataclass(frozen=True)
class Places:
    """What a source's names may mean.

    Args:
        folder: Where relative names begin; None: nowhere.
        outside: Whether a name may leave the folder, as in a table that its owner wrote here.
        remote: Whether pictures are fetched from the network.
    """

    folder: Path | None = None
    outside: bool = False
    remote: bool = False


def source_of(reference: Any, name: str, places: Places) -> Source:
    """Return where a picture comes from.

    Args:
        reference: Encoded bytes; a mapping with ``bytes`` or ``path``; or a text: a path, a
            ``file:``, ``data:``, ``zip:`` or ``http:`` URL, or base64.
        name: What messages call the picture.
        places: What names may mean.

    Raises:
        RowError: It is none of these, is no file, or would have to be fetched.
        DataError: A name leaves the folder; never skipped, since the data may be hostile.
    """
    if isinstance(reference, Mapping):
        held, path = reference.get("bytes"), reference.get("path")
        if not missing(held):
            return source_of(held, name, places)
        if isinstance(path, str) and path:
            return source_of(path, name, places)
        raise RowError("has a picture with neither bytes nor path")
    if isinstance(reference, bytes | bytearray | memoryview):
        return Source(name, Held(bytes(reference)))
    if not isinstance(reference, str) or not reference:
        raise RowError(f"has {type(reference).__name__} where a picture should be")
    return _named(reference, name, places)


def _named(text: str, name: str, places: Places) -> Source:
    if text.startswith("data:"):
        return Source(name, Held(_decoded(text.partition(",")[2], text[:40])))
    if text.startswith(_REMOTE):
        if not places.remote:
            host = urlsplit(text).hostname or "?"
            raise RowError(
                f"names a picture on {host}; pictures are not fetched unless --allow-remote is "
                "given: give it, or download them into the folder"
            )
        return Source(name, Fetched(text))
    if text.startswith("zip://"):
        member, _, archive = text.removeprefix("zip://").partition("::")
        return Source(name, Member(archive, member))
    path = Path(unquote(urlsplit(text).path)) if text.startswith("file:") else None
    if path is None and len(text) > 200 and _BASE64.fullmatch(text):
        return Source(name, Held(_decoded(text, text[:40])))
    file = within(path or Path(text), text, places)
    if not existing(str(file)) or not file.is_file():
        shown = text if len(text) <= 120 else f"{text[:117]}..."
        raise RowError(
            f"names {shown!r}, which is not a file in {places.folder}; add it or fix the row"
        )
    return Source(str(file), partial(read_plain, file))


def within(path: Path, shown: str, places: Places) -> Path:
    """Return where a name leads.

    Raises:
        RowError: It is a URL of a kind that is not read.
        DataError: It leaves the folder although it may not.
    """
    windows = PureWindowsPath(path)  # also splits at "/", so it refuses what either system would
    if "://" in str(shown) and not str(shown).startswith("file://"):
        raise RowError(f"names {shown!r}; pictures are not fetched: download it into the folder")
    folder = places.folder or Path()
    if places.outside or (path.is_absolute() and _inside(path, folder)):
        return path if path.is_absolute() else folder / path
    if windows.anchor or ".." in windows.parts:
        raise DataError(
            f"file_name {shown!r} leaves the folder of the metadata; allowed: a path inside it"
        )
    return folder / path


def _inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False


def _decoded(text: str, shown: str) -> bytes:
    try:
        plain = "".join(text.split()).replace("-", "+").replace("_", "/")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RowError(f"has a picture that is not base64 ({shown!r}...)") from None


def looks_like_picture(value: Any) -> bool:
    """Tell whether a cell of a table can be a picture, by its form."""
    if isinstance(value, Mapping):
        return "bytes" in value or "path" in value
    if isinstance(value, list):
        return bool(value) and looks_like_picture(value[0])
    if isinstance(value, str):
        head = value[:200]
        known = head.startswith((*_REMOTE, "data:image", "zip://", "file:"))
        suffix = Path(value).suffix.lower() in SUFFIXES if len(value) < 4096 else False
        return known or suffix or (len(value) > 200 and _BASE64.fullmatch(value) is not None)
    return isinstance(value, bytes)


def reference_id(reference: Any) -> str:
    """Return a digest of what a row says about a picture, without saying it."""
    if isinstance(reference, Mapping):
        held = reference.get("bytes")
        return reference_id(held if not missing(held) else reference.get("path") or "")
    data = reference.encode("utf-8", "replace") if isinstance(reference, str) else reference
    return hashlib.sha256(bytes(data or b"")).hexdigest()[:16]


# Classes, not closures, so that samples pickle.


@dataclass(frozen=True)
class Held:
    """Bytes that a row holds itself."""

    data: bytes

    def __call__(self) -> bytes:
        """Return the encoded picture."""
        return self.data


@dataclass(frozen=True)
class Member:
    """A picture in a zip archive; read in place, nothing is unpacked."""

    archive: str
    name: str

    def __call__(self) -> bytes:
        """Return the encoded picture."""
        try:
            with open_plain(Path(self.archive)) as file, zipfile.ZipFile(file) as archive:
                if archive.getinfo(self.name).file_size > _MOST_BYTES:
                    raise OSError(f"larger than {_MOST_BYTES >> 20} MiB in its archive")
                return archive.read(self.name)
        except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError) as error:
            raise OSError(f"{self.archive}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class Fetched:
    """A picture on the network, fetched when it is asked for."""

    url: str

    def __call__(self) -> bytes:
        """Return the encoded picture."""
        from http.client import HTTPException
        from urllib.request import Request, urlopen

        request = Request(self.url, headers={"User-Agent": "prunetune"})
        try:
            with urlopen(request, timeout=_SECONDS) as answer:
                if not answer.geturl().startswith(_REMOTE):
                    raise OSError("it was redirected to what is no http address")
                data: bytes = answer.read(_MOST_BYTES + 1)
        except (HTTPException, ValueError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        if len(data) > _MOST_BYTES:
            raise OSError(f"larger than {_MOST_BYTES >> 20} MiB")
        return data
