"""Which side of a split a row is on: rows that share a picture are never on both.

Pictures are the same by their pixels, and near duplicates count as the same; names do not matter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunetune.calibration.cutting import cut
from prunetune.calibration.records import Record, sha256
from prunetune.errors import DataError


@dataclass(frozen=True)
class Sides:
    """The rows of both sides.

    Args:
        calibration: Rows that a search sees.
        held_out: Rows on other pictures.
        left_out: Rows that would show pictures of both sides.
    """

    calibration: list[Record]
    held_out: list[Record]
    left_out: tuple[Record, ...] = ()


def split_records(
    records: Sequence[Record],
    *,
    seed: int,
    held_out: float,
    pictures: Sequence[Iterable[str]] | None = None,
    near: Iterable[tuple[str, str]] = (),
) -> Sides:
    """Split by picture into calibration and held-out rows; a split named by the source stands.

    Rows are connected by a common ``image_id``, a common picture, or near duplicates; whole groups
    of connected rows are held out, in an order that depends on the seed and their names alone, up
    to the share that was asked for. Where a group alone is more than that and without it the share
    is not reached, a part of it is held out, and the rows between the parts are left out.

    Args:
        records: Rows that can be used.
        seed: Decides the sides.
        held_out: Share of the rows that is held out, in [0, 1).
        pictures: Digests of each row's pictures; None: what has one ``image_id`` has one picture.
        near: Pairs of digests that count as one picture.

    Raises:
        DataError: ``held_out`` is not in [0, 1), or an image is on both named sides.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}; allowed: 0 (none) up to, but not including, 1")
    if any(record.split for record in records):
        return Sides(*_named(records))
    if not held_out:
        return Sides(list(records), [])
    shown = [set(row) for row in pictures] if pictures else [set[str]() for _ in records]
    near = list(near)
    held, left = _choose(records, _groups(records, shown, near), seed, held_out, shown, near)
    rows = list(enumerate(records))
    return Sides(
        [record for k, record in rows if k not in held and k not in left],
        [record for k, record in rows if k in held],
        tuple(record for k, record in rows if k in left),
    )


def _named(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    sides = (
        [r for r in records if r.split != "held_out"],
        [r for r in records if r.split == "held_out"],
    )
    _refuse_overlap(*({record.image_id for record in side} for side in sides))
    return sides


def _groups(
    records: Sequence[Record], shown: Sequence[set[str]], near: Iterable[tuple[str, str]]
) -> list[list[int]]:
    """Return the indices of rows that are connected, group by group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = name = parent.setdefault(above, above)
        return name

    for one, other in near:
        parent[root(one)] = root(other)
    for record, digests in zip(records, shown, strict=True):
        for digest in digests:
            parent[root(digest)] = root(f"/{record.image_id}")
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(root(f"/{record.image_id}"), []).append(index)
    return list(groups.values())


def _choose(
    records: Sequence[Record],
    groups: list[list[int]],
    seed: int,
    share: float,
    shown: Sequence[set[str]],
    near: Iterable[tuple[str, str]],
) -> tuple[set[int], set[int]]:
    """Return the indices of the rows that are held out, and of those that are left out."""
    groups = sorted(groups, key=lambda group: _rank(seed, min(records[k].image_id for k in group)))
    wanted = min(max(1, int(share * len(records) + 0.5)), len(records) - 1)
    held, left = set[int](), set[int]()
    for group in groups:
        if len(held) + len(group) <= wanted:
            held.update(group)
    whole = [group for group in groups if held.isdisjoint(group)]
    for group in sorted(whole, key=len, reverse=True):
        if len(group) <= wanted or wanted - len(held) <= wanted // 10:
            break
        names = [shown[k] | {f"/{records[k].image_id}"} for k in group]
        rest = len(records) - len(held) - len(left) - len(group)
        parts = cut(names, near, share=share, held=len(held), rest=rest)
        if parts is not None:
            held.update(group[k] for k in parts[0])
            left.update(group[k] for k in parts[1])
            whole.remove(group)
    for group in whole:
        # One more where that is nearer to the share, and leaves something to search on.
        more = len(held) + len(group)
        if more - wanted < wanted - len(held) and more + len(left) < len(records):
            held.update(group)
            break
    if not held and len(groups) > 1:
        held.update(groups[min(range(len(groups)), key=lambda k: len(groups[k]))])
    return held, left


def split_as_before(records: Sequence[Record], *, seed: int, held_out: float) -> Sides:
    """Split as releases up to 0.1 did: by names, each on the side that its own hash says.

    Studies and configs of then were made on these sides; pictures of several names leak.
    """
    if any(record.split for record in records):
        return Sides(*_named(records))
    ranked = sorted({record.image_id for record in records}, key=lambda image: _rank(seed, image))
    count = sum(_rank(seed, image) < int(held_out * 2**64) for image in ranked)
    if held_out and len(ranked) > 1:
        count = min(max(count, 1), len(ranked) - 1)
    elif len(ranked) == 1:
        count = 0
    chosen = set(ranked[:count])
    return Sides(
        [record for record in records if record.image_id not in chosen],
        [record for record in records if record.image_id in chosen],
    )


def _refuse_overlap(calibration: set[str], held_out: set[str]) -> None:
    if both := sorted(calibration & held_out):
        raise DataError(
            f"image {both[0]!r} is in both calibration and held_out ({len(both)} such image(s)); "
            f"results on held-out data would be worth nothing: keep each image on one side"
        )


def _rank(seed: int, image_id: str) -> int:
    return int(sha256([seed, image_id])[:16], 16)
