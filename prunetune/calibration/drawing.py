"""Rows drawn from a source before their pictures are decoded: at random, by picture, by a seed."""

from collections.abc import Sequence

from prunetune.calibration.records import Record, sha256


def draw(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """Return about ``count`` rows, never more: all rows about each of the pictures drawn.

    Which pictures depends on the seed and their names alone. Rows that name a file in common are
    about one picture, whatever else they name. Of a picture with more rows than that, and nothing
    else drawn, a part is taken.

    Args:
        records: Rows that can be used.
        count: How many are wanted; None for all.
        seed: Decides which.
    """
    if count is None or len(records) <= count:
        return list(records)
    chosen: list[Record] = []
    groups = sorted(_by_picture(records), key=lambda group: _rank(seed, group))
    for group in groups:
        if len(chosen) + len(group) <= count:
            chosen += group
    return chosen or groups[0][:count]


def _by_picture(records: Sequence[Record]) -> list[list[Record]]:
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = name = parent.setdefault(above, above)
        return name

    for record in records:
        for source in record.sources:
            parent[root(f"file {source.name}")] = root(f"/{record.image_id}")
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(root(f"/{record.image_id}"), []).append(record)
    return list(groups.values())


def _rank(seed: int, group: Sequence[Record]) -> str:
    return sha256([seed, "drawn", min(record.image_id for record in group)])
