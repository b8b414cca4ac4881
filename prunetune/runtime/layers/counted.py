"""Cache layers that report the sequence's length while they hold fewer tokens."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from prunetune.release import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)


class FollowsRows(Protocol):
    """What goes along with what is done to the rows of a cache."""

    def move_rows(self, move: Callable[[Tensor], Tensor], batch: int) -> None:
        """Do ``move`` to all that it holds of ``batch`` rows."""


class Counted:
    """A cache layer that reports the sequence's length while it holds fewer slots.

    A model asks the first layer of each kind how long the sequence is, for positions and for its
    masks; after a stage that layer is shorter than the sequence. What is done to the rows of the
    cache is done to its layers; the first one does it to the cache's state too.
    """

    dropped: int = 0
    state: FollowsRows | None = None

    def get_seq_length(self) -> Any:
        """Return the length of the sequence, dropped tokens included."""
        length = super().get_seq_length()  # type: ignore[misc]
        if isinstance(length, int) and length == 0:
            return 0
        return length + self.dropped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) as if nothing had been dropped."""
        keys, offset = self.physical_sizes(query_length)
        return keys + self.dropped, offset

    def physical_length(self) -> int:
        """Return how many tokens it holds."""
        return int(super().get_seq_length())  # type: ignore[misc]

    def physical_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) of what it holds."""
        return self.physical_length() + query_length, 0

    def reset(self) -> None:
        """Empty it: nothing is dropped any more."""
        super().reset()  # type: ignore[misc]
        self.dropped = 0
        self.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder its rows, and what follows them."""
        self._move_rows(lambda rows: rows[beam_idx.to(rows.device)])
        super().reorder_cache(beam_idx)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select rows, and of what follows them."""
        self._move_rows(lambda rows: rows[indices.to(rows.device)])
        super().batch_select_indices(indices)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat its rows, and what follows them."""
        self._move_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]

    def _move_rows(self, move: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None and self.physical_length():
            self.state.move_rows(move, self.keys.shape[0])  # type: ignore[attr-defined]


class CountedDynamicLayer(Counted, DynamicLayer):  # type: ignore[misc]
    """``DynamicLayer`` with a logical length."""


class CountedSlidingLayer(Counted, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """``DynamicSlidingWindowLayer`` with a logical length.

    It holds its last tokens that are left, as many as its window has: all those that the window
    reaches, and some more where dropped ones lie between.
    """

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) as if nothing had been dropped."""
        length = int(self.get_seq_length())
        offset = max(length - int(self.sliding_window) + 1, 0)
        return length - offset + query_length, offset

    def physical_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) of what it holds."""
        sizes: tuple[int, int] = DynamicSlidingWindowLayer.get_mask_sizes(self, query_length)
        return sizes


class CountedStatic(Counted):
    """A static cache layer, which has room for the whole sequence."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) of all that it has room for."""
        return self.physical_sizes(query_length)

    def physical_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) of what it holds."""
        return int(self.max_cache_len), 0  # type: ignore[attr-defined]


class CountedStaticLayer(CountedStatic, StaticLayer):  # type: ignore[misc]
    """``StaticLayer`` with a logical length."""


class CountedStaticSlidingLayer(CountedStatic, StaticSlidingWindowLayer):  # type: ignore[misc]
    """``StaticSlidingWindowLayer`` with a logical length; see ``CountedSlidingLayer``."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) as if nothing had been dropped."""
        length, room = int(self.get_seq_length()), int(self.max_cache_len)
        offset = max(length - room + 1, 0)
        return max(room, length - offset + query_length), offset

    def physical_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys, offset) of what it holds."""
        sizes: tuple[int, int] = StaticSlidingWindowLayer.get_mask_sizes(self, query_length)
        return sizes


def counted_layer(cache: Any, layer: int) -> Any:
    """Return a layer of ``cache``, made a ``Counted`` one; None where its kind has none."""
    entry = cache.layers[layer]
    if not isinstance(entry, Counted):
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
        cache.layers[layer] = entry = counted
    return entry
