"""KV caches whose layers hold unequal numbers of tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.release import StaticLayer, carries_state, keyed_layers
from prunetune.runtime.layers.counted import Counted, counted_layer
from prunetune.runtime.layers.segment import Held

STATE = "_prunetune_state"
"""Attribute of a cache object; it travels with ``copy.deepcopy`` and dies with the cache."""

FAILED = "_prunetune_failed"
"""Attribute of a cache that a failed forward has grown in some layers only."""


@dataclass
class CacheState:
    """What later forwards over one cache must know.

    Attributes:
        digest: Of the config that filled the cache.
        held: Per stage, which tokens the layers from it to the next hold.
        shift: ``[B]`` int64, tokens dropped before the language model, for packed positions.
        floor: Tokens of the sequence up to the last dropped one: what must not be cropped off.
        position: ``[B]`` int64, position of the last token of the forward that pruned last; an int
            where all rows have the same; None where it is not known.
        reached: Tokens of the sequence up to that one.
        asked: Tokens of the sequence up to the question that images were chosen by; 0: by none.
        unasked: Whether the forward that pruned last had images, a config that asks for the
            question, and none.
    """

    digest: str
    held: list[Held]
    shift: Tensor | None = None
    floor: int = 0
    position: Tensor | int | None = None
    reached: int = 0
    asked: int = 0
    unasked: bool = False

    def rows(self, stage: int, batch: int) -> Held:
        """Return ``held`` of a stage for ``batch`` rows (beams repeat a sample's row)."""
        held = self.held[stage]
        return replace(held, slots=_repeat(held.slots, batch), bias=_repeat(held.bias, batch))

    def shifts(self, batch: int) -> Tensor | None:
        """Return ``shift`` for ``batch`` rows."""
        return _repeat(self.shift, batch)

    def next_position(self, past: int, batch: int) -> Tensor | int | None:
        """Return the position of the token that follows ``past`` ones, ``[batch]`` or an int."""
        if self.position is None:
            return None
        last = self.position if isinstance(self.position, int) else _repeat(self.position, batch)
        return None if last is None else last + 1 + past - self.reached

    def note_asked(self, past: int, asked: int | None) -> None:
        """Remember which question a forward's images were chosen by; see ``leave``."""
        self.unasked = asked == 0
        if asked:
            self.asked = past + asked

    def check_asked(self, past: int) -> None:
        """Raise if a prompt is a picture that was cached before any question was known.

        Args:
            past: Tokens of the sequence before a forward of several tokens without images.
        """
        if self.unasked and past == self.reached:
            raise ConfigError(
                "the config keeps image tokens by the question about them, and the cache holds a "
                "picture that was run without one; run the picture together with its question, or "
                "use a config that does not depend on the prompt"
            )

    @property
    def differs_by_row(self) -> bool:
        """Whether some of it is another for each row of the cache."""
        rows = [self.shift, self.position]
        rows += [part for held in self.held for part in (held.slots, held.bias)]
        return any(isinstance(part, Tensor) and len(part) > 1 for part in rows)

    def move_rows(self, move: Callable[[Tensor], Tensor], batch: int) -> None:
        """Do to all of it what is done to the ``batch`` rows of the cache."""
        self.held = [
            replace(
                held,
                slots=_moved(held.slots, move, batch),
                bias=_moved(held.bias, move, batch),
            )
            for held in self.held
        ]
        self.shift = _moved(self.shift, move, batch)
        if isinstance(self.position, Tensor):
            self.position = _moved(self.position, move, batch)


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
        ConfigError: Another config filled it, or it was cropped to before a dropped token or
            to before the end of a question that images were chosen by.
    """
    state: CacheState | None = getattr(cache, STATE, None)
    if state is None:
        return None
    if not past:
        delattr(cache, STATE)
        for entry in cache.layers:
            if isinstance(entry, Counted):
                entry.dropped = 0
                entry.state = None
        return None
    if past < state.floor:
        raise ConfigError(
            f"this cache was cropped to {past} tokens, but tokens of its first {state.floor} were "
            "dropped, so that its layers cannot be cropped alike; start a new cache"
        )
    if past < state.asked:
        raise ConfigError(
            f"this cache was cropped to {past} tokens, but its images were chosen by a question "
            f"that ends at token {state.asked}, and another may need others; start a new cache, or "
            "use a config that does not depend on the prompt"
        )
    if state.digest != digest:
        raise ConfigError("this cache was filled under another pruning config; start a new cache")
    return state


def note_failed(cache: Any, past: int) -> None:
    """Mark a cache that a failed forward has grown; ``past``: tokens seen over it before."""
    if cache is None:
        return
    # A state tells no length: where there are any, they may have grown.
    if int(cache.get_seq_length()) != past or carries_state(cache):
        setattr(cache, FAILED, True)


def check_whole(cache: Any, past: int) -> None:
    """Raise if a failed forward has grown ``cache``, unless it was emptied since."""
    if not hasattr(cache, FAILED):
        return
    if past or carries_state(cache):
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
    length = entry.physical_length() if isinstance(entry, Counted) else entry.get_seq_length()
    return int(length)


class CacheView:
    """What mask creation reads of a cache, with the lengths that each layer really holds."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.is_compileable = bool(getattr(cache, "is_compileable", False))
        first = _first_keyed(cache)
        self.static = first is not None and isinstance(cache.layers[first], StaticLayer)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the slots layer ``layer_idx`` holds before this forward."""
        return physical_length(self._cache, layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the same: no layer of this view has a logical length of its own."""
        return physical_length(self._cache, layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return (key length, key offset) for ``query_length`` new tokens."""
        if layer_idx >= len(self._cache.layers):
            return query_length, 0
        entry = self._cache.layers[layer_idx]
        sizes = entry.physical_sizes if isinstance(entry, Counted) else entry.get_mask_sizes
        given: tuple[int, int] = sizes(query_length)
        return given


def count_dropped(cache: Any, layers: list[int], total: int) -> None:
    """Make some layers of ``cache`` report ``total`` tokens, however many they hold.

    Args:
        cache: The cache.
        layers: The first layer of each kind that keeps keys, which models ask for positions and
            masks, in order.
        total: Tokens of the sequence, dropped ones included.
    """
    for layer in layers:
        dropped = total - physical_length(cache, layer)
        if not dropped:
            continue
        entry = counted_layer(cache, layer)
        if entry is not None:
            entry.dropped = dropped
        elif layer == layers[0]:
            raise UnsupportedModelError(
                "a layer-0 stage cannot keep the length of a "
                f"{type(cache.layers[layer]).__name__} cache; use a DynamicCache or StaticCache, "
                "or a config whose first stage is at layer 1"
            )


def uncounted(cache: Any) -> int:
    """Return how many tokens the first layer of a cache that counts them reports and lacks."""
    first = _first_keyed(cache)
    entry = None if first is None else cache.layers[first]
    return entry.dropped if isinstance(entry, Counted) else 0


def follow_rows(cache: Any, state: CacheState) -> None:
    """Make ``state`` follow what is done to the rows of a dynamic or static ``cache``."""
    first = _first_keyed(cache)
    if state.differs_by_row and first is not None:
        entry = counted_layer(cache, first)
        if entry is not None:
            entry.state = state


def _first_keyed(cache: Any) -> int | None:
    """Return the first layer of a cache that keeps keys; None where there is none yet."""
    return next(iter(keyed_layers(cache)), None)
