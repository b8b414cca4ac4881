"""KV caches whose layers hold unequal numbers of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from prunetune.errors import ConfigError, UnsupportedModelError

STATE = "_prunetune_state"
"""Attribute of a cache object; it travels with ``copy.deepcopy`` and dies with the cache."""

FAILED = "_prunetune_failed"
"""Attribute of a cache that a failed forward has grown in some layers only."""


@dataclass
class CacheState:
    """What later forwards over one cache must know.

    Attributes:
        digest: Of the config that filled the cache.
        prefix: Per stage, ``[B, tokens]`` bool: which cached slots of its layers are real (False:
            padding of ragged rows). None: all of them. Slots added later are real.
        shift: ``[B]`` int64, tokens dropped before the language model, for packed positions.
        floor: Tokens of the sequence up to the last dropped one: what must not be cropped off.
    """

    digest: str
    prefix: list[Tensor | None]
    shift: Tensor | None = None
    floor: int = 0

    def rows(self, stage: int, batch: int) -> Tensor | None:
        """Return ``prefix`` of a stage for ``batch`` rows (beams repeat a sample's row)."""
        return _repeat(self.prefix[stage], batch)

    def shifts(self, batch: int) -> Tensor | None:
        """Return ``shift`` for ``batch`` rows."""
        return _repeat(self.shift, batch)

    def move_rows(self, move: Callable[[Tensor], Tensor], batch: int) -> None:
        """Do to ``prefix`` and ``shift`` what is done to the ``batch`` rows of the cache."""
        self.prefix = [_moved(rows, move, batch) for rows in self.prefix]
        self.shift = _moved(self.shift, move, batch)


def _moved(rows: Tensor | None, move: Callable[[Tensor], Tensor], batch: int) -> Tensor | None:
    # Rows that do not match are left as they are, for the next forward to refuse.
    if rows is None or batch % rows.shape[0]:
        return rows
    return move(rows.repeat_interleave(batch // rows.shape[0], dim=0))


def _repeat(rows: Tensor | None, batch: int) -> Tensor | None:
    if rows is None or rows.shape[0] == batch:
        return rows
    if batch % rows.shape[0]:
        raise UnsupportedModelError(
            f"the cache was filled for {rows.shape[0]} sequences and is continued with {batch}; "
            "continue it with the same sequences (or a multiple of them: beams)"
        )
    return rows.repeat_interleave(batch // rows.shape[0], dim=0)


def state_of(cache: Any, digest: str, past: int) -> CacheState | None:
    """Return the state left on a cache, or None if no pruned forward has filled it.

    Args:
        cache: The cache.
        digest: Of the config that goes on with it.
        past: Tokens seen over it; 0: it is empty, whatever it held before.

    Raises:
        ConfigError: Another config filled it, or it was cropped to before a dropped token.
    """
    state: CacheState | None = getattr(cache, STATE, None)
    if state is None:
        return None
    if not past:
        delattr(cache, STATE)
        if isinstance(cache.layers[0], _Counted):
            cache.layers[0].dropped = 0
            cache.layers[0].state = None
        return None
    if past < state.floor:
        raise ConfigError(
            f"this cache was cropped to {past} tokens, but tokens of its first {state.floor} were "
            "dropped, so that its layers cannot be cropped alike; start a new cache"
        )
    if state.digest != digest:
        raise ConfigError("this cache was filled under another pruning config; start a new cache")
    return state


def note_failed(cache: Any, past: int) -> None:
    """Mark a cache that a failed forward has grown; ``past``: tokens seen over it before."""
    if cache is not None and int(cache.get_seq_length()) != past:
        setattr(cache, FAILED, True)


def check_whole(cache: Any, past: int) -> None:
    """Raise if a failed forward has grown ``cache``, unless it was emptied since."""
    if not hasattr(cache, FAILED):
        return
    if past:
        raise ConfigError(
            "a forward over this cache failed when some of its layers had grown already; "
            "start a new cache"
        )
    delattr(cache, FAILED)


def physical_length(cache: Any, layer: int) -> int:
    """Return how many slots layer ``layer`` of a cache holds."""
    if cache is None or layer >= len(cache.layers):
        return 0
    entry = cache.layers[layer]
    length = entry.physical_length() if isinstance(entry, _Counted) else entry.get_seq_length()
    return int(length)


class CacheView:
    """What mask creation reads of a cache, with the lengths that each layer really holds."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.is_compileable = bool(getattr(cache, "is_compileable", False))

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the slots layer ``layer_idx`` holds before this forward."""
        return physical_length(self._cache, layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the same: no layer of this view has a logical length of its own."""
        return physical_length(self._cache, layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return (key length, key offset) for ``query_length`` new tokens."""
        sizes: tuple[int, int] = self._cache.get_mask_sizes(query_length, layer_idx)
        return sizes


class _Counted:
    """A cache layer that reports the sequence's length while it holds fewer slots.

    ``generate`` asks layer 0 how long the sequence is when it continues a cache; after a layer-0
    stage that layer is shorter than the sequence. What is done to the rows of the cache is done
    to its layers; this one does it to the cache's state too.
    """

    dropped: int = 0
    state: CacheState | None = None

    def get_seq_length(self) -> Any:
        length = super().get_seq_length()  # type: ignore[misc]
        if isinstance(length, int) and length == 0:
            return 0
        return length + self.dropped

    def physical_length(self) -> int:
        return int(super().get_seq_length())  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.dropped = 0
        self.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._move_rows(lambda rows: rows[beam_idx.to(rows.device)])
        super().reorder_cache(beam_idx)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor) -> None:
        self._move_rows(lambda rows: rows[indices.to(rows.device)])
        super().batch_select_indices(indices)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._move_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]

    def _move_rows(self, move: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None and self.physical_length():
            self.state.move_rows(move, self.keys.shape[0])  # type: ignore[attr-defined]


class CountedDynamicLayer(_Counted, DynamicLayer):  # type: ignore[misc]
    """``DynamicLayer`` with a logical length."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the real number of keys: masks are about slots."""
        return self.physical_length() + query_length, 0


class CountedSlidingLayer(_Counted, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """``DynamicSlidingWindowLayer`` with a logical length (the window never binds)."""


class CountedStaticLayer(_Counted, StaticLayer):  # type: ignore[misc]
    """``StaticLayer`` with a logical length."""


class CountedStaticSlidingLayer(_Counted, StaticSlidingWindowLayer):  # type: ignore[misc]
    """``StaticSlidingWindowLayer`` with a logical length (the window never binds)."""


def count_dropped(cache: Any, dropped: int, *, anew: bool) -> None:
    """Make layer 0 of ``cache`` report ``dropped`` more tokens than it holds.

    Args:
        cache: The cache.
        dropped: Tokens that this forward dropped before layer 0.
        anew: Whether the cache was empty before; then earlier drops do not count.
    """
    entry = _counted_layer(cache)
    if entry is None:
        raise UnsupportedModelError(
            f"a layer-0 stage cannot keep the length of a {type(cache.layers[0]).__name__} cache; "
            "use a DynamicCache or StaticCache, or a config whose first stage is at layer 1"
        )
    entry.dropped = dropped if anew else entry.dropped + dropped


def follow_rows(cache: Any, state: CacheState) -> None:
    """Make ``state`` follow what is done to the rows of a dynamic or static ``cache``."""
    if state.shift is not None or any(rows is not None for rows in state.prefix):
        entry = _counted_layer(cache)
        if entry is not None:
            entry.state = state


def _counted_layer(cache: Any) -> Any:
    """Return layer 0 of ``cache``, made a ``_Counted`` one; None where its kind has none."""
    entry = cache.layers[0]
    if not isinstance(entry, _Counted):
        kinds = {
            DynamicLayer: CountedDynamicLayer,
            DynamicSlidingWindowLayer: CountedSlidingLayer,
            StaticLayer: CountedStaticLayer,
            StaticSlidingWindowLayer: CountedStaticSlidingLayer,
        }
        kind = kinds.get(type(entry))
        if kind is None:
            return None
        counted = kind.__new__(kind)
        counted.__dict__.update(entry.__dict__)
        cache.layers[0] = entry = counted
    return entry


def extend_prefix(old: Tensor | None, past: int, new: Tensor) -> Tensor | None:
    """Return the validity of ``past`` cached slots followed by ``new`` (``[B, m]`` bool).

    None stands for "all real", in and out.
    """
    if old is None and (new.shape[1] == 1 or bool(new.all())):
        return None
    batch = new.shape[0]
    if old is None:
        head = torch.ones(batch, past, dtype=torch.bool, device=new.device)
    else:
        head = old.to(new.device)[:, :past]
        grown = past - head.shape[1]
        if grown:
            head = torch.nn.functional.pad(head, (0, grown), value=True)
    return torch.cat([head, new], dim=1)
