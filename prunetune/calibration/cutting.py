"""Cuts one group of connected rows in two parts that share no picture."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

_STARTS = 8
_LOOKED_AT = 64


def cut(
    rows: Sequence[set[str]],
    near: Iterable[tuple[str, str]],
    *,
    share: float,
    held: int,
    rest: int,
) -> tuple[set[int], set[int]] | None:
    """Return a part to hold out and the rows between it and the others.

    The part grows from one row to its neighbours; what is a neighbour of it in the end lies
    between. Of several beginnings, and of all sizes on the way, the one is taken that comes nearest
    to the share, and of equal ones the one that leaves out the fewest.

    Args:
        rows: The names of each row's pictures.
        near: Pairs of names that count as one.
        share: What share of all rows that stay shall be held out.
        held: Rows of other groups that are held out already.
        rest: Rows of other groups that are not.

    Returns:
        Indices of both; None where no cut leaves rows on both sides.
    """
    units: dict[frozenset[str], list[int]] = defaultdict(list)
    for index, names in enumerate(rows):
        # Rows on the very same pictures bridge nothing between them.
        units[frozenset(names)].append(index)
    graph, members = _Graph(list(units), near), list(units.values())
    best: tuple[float, int, set[int], set[int]] | None = None
    for start in range(0, len(members), max(1, len(members) // _STARTS)):
        for part, between in _growing(graph, start):
            out, left = _rows(part, members), _rows(between, members)
            if not rest and len(out) + len(left) == len(rows):
                break
            share_now = (held + len(out)) / (held + rest + len(rows) - len(left))
            found = round(abs(share_now - share), 9), len(left), out, left
            if len(members) > 1 and (best is None or found[:2] < best[:2]):
                best = found
            if share_now >= share:
                break
    return None if best is None else (best[2], best[3])


def _growing(graph: "_Graph", start: int) -> Iterator[tuple[set[int], set[int]]]:
    """Yield a growing part and what lies between it and all else."""
    part, between = {start}, graph.neighbours(start) - {start}
    yield part, between
    while between:
        candidates = sorted(between)[:_LOOKED_AT]
        added = min(candidates, key=lambda k: len(graph.neighbours(k) - part - between))
        part = part | {added}
        between = (between | graph.neighbours(added)) - part
        yield part, between


def _rows(units: set[int], members: Sequence[Sequence[int]]) -> set[int]:
    return {row for unit in units for row in members[unit]}


class _Graph:
    """Rows that share pictures; neighbours are found when asked for: there may be very many."""

    def __init__(self, rows: Sequence[Collection[str]], near: Iterable[tuple[str, str]]) -> None:
        self._rows = rows
        self._with: dict[str, set[int]] = defaultdict(set)
        for index, names in enumerate(rows):
            for name in names:
                self._with[name].add(index)
        self._like: dict[str, set[str]] = defaultdict(set)
        for one, other in near:
            self._like[one].add(other)
            self._like[other].add(one)

    def neighbours(self, index: int) -> set[int]:
        """Return the rows that share a picture with one, itself included."""
        found: set[int] = set()
        for name in self._rows[index]:
            for same in (name, *self._like.get(name, ())):
                found |= self._with.get(same, set())
        return found
