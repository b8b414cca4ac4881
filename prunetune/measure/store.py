"""Where references live: in memory, or memory-mapped on disk and shared by searches."""

import hashlib
import json
import logging
import math
import os
import time
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from prunetune.files import read_plain, write_atomically
from prunetune.measure.cache_room import make_room, remove_leftovers, taken_by_others
from prunetune.measure.memos import Memos
from prunetune.measure.packing import pack, unpack
from prunetune.measure.reference import Reference
from prunetune.models.fingerprint import weights_digest
from prunetune.texts import parse_json

logger = logging.getLogger(__name__)

LAYOUT = 4
"""Version of the files' layout; another one is another key, so old files are never misread."""

_GIB = 1 << 30
_MARK_SECONDS = 60.0
_MOST_IN_MEMORY = 4 * _GIB
# What computes references, in the package; of any other code they do not depend.
_COMPUTES = (
    "families",
    "pixels",
    "runtime",
    "tokens.py",
    *(
        f"measure/{name}.py"
        for name in ("prompts", "reference", "continued", "own", "packing", "levels")
    ),
)


class Store(Protocol):
    """Keeps one reference a sample."""

    def get(self, index: int) -> Reference | None:
        """Return a sample's reference, or None when it has to be computed."""

    def put(self, index: int, reference: Reference) -> None:
        """Keep a sample's reference."""


class MemoryStore:
    """Keeps references in memory."""

    def __init__(self) -> None:
        self._references: dict[int, Reference] = {}
        self._memos = Memos()

    def get(self, index: int) -> Reference | None:
        """Return what ``put`` was given."""
        return self._references.get(index)

    def put(self, index: int, reference: Reference) -> None:
        """Keep it."""
        for i, image in enumerate(reference.images):
            image.memo = self._memos.of(index, i)
        self._references[index] = reference

    def move_to(self, store: Store) -> None:
        """Put into another store what is kept here and not there."""
        for index, reference in self._references.items():
            if store.get(index) is None:
                store.put(index, reference)


class DiskStore:
    """Keeps references in a folder; a sample's is mapped when asked for and let go after use.

    Safe for several processes: files appear whole, and two that compute the same sample write the
    same content. A damaged file (size or checksum) is computed again. Where a file
    cannot be written (full disk, read-only folder), the reference is kept in memory, up to 4 GiB of
    them; where it would take the cache over its limit, it is computed again whenever it is needed.
    Both are said once.

    Args:
        folder: Root of all caches.
        key: What the references depend on, as ``store_key`` returns it.
        names: Of the samples: hexadecimal, the same for the same pixels and texts.
        limit: Bytes that all caches may take; the least recently used ones go first, but none
            that was used in the last ten minutes.
    """

    def __init__(
        self, folder: Path, key: str, names: Sequence[str], limit: int = 20 * _GIB
    ) -> None:
        self.folder = folder / key
        self._root, self._names, self._limit = folder, names, limit
        self._memory = MemoryStore()
        self._checked: set[str] = set()
        self._memos = Memos()
        self._said: set[str] = set()
        self._marked = -math.inf
        self._in_memory = 0
        remove_leftovers(self.folder)

    def _path(self, index: int) -> Path:
        return self.folder / f"{self._names[index]}.safetensors"

    def get(self, index: int) -> Reference | None:
        """Map a sample's file, checking it the first time."""
        kept = self._memory.get(index)
        if kept is not None:
            return kept
        path = self._path(index)
        try:
            if path.name not in self._checked:
                if not path.exists() or not self._intact(path):
                    return None
                self._checked.add(path.name)
            reference = self._map(path)
            self._mark()
        except FileNotFoundError:
            self._checked.discard(path.name)
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("cache file %s is damaged and is computed again: %s", path, error)
            self._checked.discard(path.name)
            return None
        for i, image in enumerate(reference.images):
            image.memo = self._memos.of(index, i)
        return reference

    def put(self, index: int, reference: Reference) -> None:
        """Write a sample's file, or keep the reference in memory where that fails."""
        path = self._path(index)
        tensors, facts = pack(reference)
        try:
            content = save(tensors, {"facts": json.dumps(facts)})
            if not make_room(self._root, self.folder, len(content), self._limit):
                self._say_too_large(len(self._names) * len(content))
                return
            sums = {"size": len(content), "crc32": zlib.crc32(content)}
            _write(path, content)
            _write(path.with_suffix(".json"), json.dumps(sums).encode())
            self._checked.add(path.name)
        except OSError as error:
            self._say(
                f"the cache {self._root} cannot be written ({error.strerror or error}): "
                "references stay in memory; choose another with --cache-dir"
            )
            # What was packed: a copy on the CPU, as a device's memory is for the model.
            self._remember(index, unpack(tensors, facts))

    def _remember(self, index: int, reference: Reference) -> None:
        self._in_memory += reference.nbytes
        if self._in_memory > _MOST_IN_MEMORY:
            self._say(
                f"references beyond {_MOST_IN_MEMORY / _GIB:.3g} GiB do not stay in memory: they "
                "are computed again in every trial"
            )
            return
        self._memory.put(index, reference)

    def foresee(self, size: int) -> None:
        """Say at once that references of ``size`` bytes, all samples together, will not fit."""
        if size + taken_by_others(self._root, self.folder) > self._limit:
            self._say_too_large(size)

    def _say_too_large(self, size: int) -> None:
        self._say(
            f"the references of this search take about {size / _GIB:.3g} GiB, {len(self._names)} "
            f"samples of {size / len(self._names) / _GIB:.2g} GiB each, and the cache may take "
            f"{self._limit / _GIB:.3g}; what does not fit is computed again in every trial: raise "
            f"--cache-limit to {_above(size)}, or use fewer --samples"
        )

    def _say(self, message: str) -> None:
        kind = message[:30]
        if kind not in self._said:
            logger.warning("%s", message)
            self._said.add(kind)

    def _intact(self, path: Path) -> bool:
        sums = parse_json(read_plain(path.with_suffix(".json")).decode())
        if path.stat().st_size != sums["size"]:
            raise ValueError(f"{path.stat().st_size} bytes instead of {sums['size']}")
        crc = 0
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                crc = zlib.crc32(block, crc)
        if crc != sums["crc32"]:
            raise ValueError("its checksum is wrong")
        return True

    def _mark(self) -> None:
        """Tell others that the cache is in use."""
        now = time.monotonic()
        if now - self._marked < _MARK_SECONDS:
            return
        self._marked = now
        try:
            os.utime(self.folder)
        except OSError:
            logger.debug("cannot mark %s as used", self.folder)

    def _map(self, path: Path) -> Reference:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return unpack(tensors, facts)


def _above(size: int) -> int:
    """Return whole GiB that hold ``size`` bytes and a little more."""
    return int(1.05 * size / _GIB) + 1


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except FileNotFoundError:
        # Another process evicted the folder meanwhile.
        write_atomically(path, content)


@cache
def _code_digest() -> str:
    """Return a digest of the code that computes references: a correction makes old ones wrong."""
    package = Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for name in _COMPUTES:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.read_bytes())
    return found.hexdigest()


def store_key(model: nn.Module, fingerprint: str, **options: Any) -> str:
    """Return what references depend on beside their sample, as a folder name.

    Args:
        model: Its weights count, by a strided sample of every tensor.
        fingerprint: Of the architecture.
        options: What else changes them: layers kept, how pictures and prompts are prepared.
    """
    from transformers import __version__

    attention = getattr(model.config, "_attn_implementation", None)
    facts = {
        "layout": LAYOUT,
        "code": _code_digest(),
        "fingerprint": fingerprint,
        "weights": weights_digest(model),
        "transformers": __version__,
        "torch": torch.__version__,
        "attention": attention,
        "options": options,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def default_cache() -> Path:
    """Return the user's cache folder: ``$XDG_CACHE_HOME/prunetune`` or ``~/.cache/prunetune``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prunetune" / "references"
