"""What changed between two configs, in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from prunetune.config import PruningConfig, Stage
from prunetune.restorers import Restorer
from prunetune.selectors import Selector

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        field: Where it stands in the config, such as ``stages.1.layer``.
        before: Value in the first config; None where it has none.
        after: Value in the second config; None where it has none.
        words: The same for people.
    """

    field: str
    before: Any
    after: Any
    words: str


def changes(before: PruningConfig, after: PruningConfig) -> list[Change]:
    """Return everything that differs in what two configs do; empty if they do the same.

    Args:
        before: The first config.
        after: The second one.
    """
    found = [
        Change(f"model.{name}", old, new, f"{shown} {_value(old)} -> {_value(new)}")
        for name, shown in (
            ("model_type", "model type"),
            ("num_layers", "decoder layers"),
            ("name", "model"),
            ("revision", "model revision"),
            ("fingerprint", "architecture fingerprint"),
        )
        if (old := getattr(before.model, name)) != (new := getattr(after.model, name))
    ]
    if before.pixels != after.pixels:
        old, new = (config.pixels and config.pixels.model_dump() for config in (before, after))
        was, now = (c.pixels.shown if c.pixels else "all pixels" for c in (before, after))
        text = f"pictures have {now} instead of {was}"
        found.append(Change("pixels", old, new, text))
    found += _stages(before.stages, after.stages)
    if before.separators != after.separators:
        words = {"keep": "kept", "drop": "dropped"}
        text = f"separators are {words[after.separators]} instead of {words[before.separators]}"
        found.append(Change("separators", before.separators, after.separators, text))
    if before.positions != after.positions:
        text = f"positions are {after.positions} instead of {before.positions}"
        found.append(Change("positions", before.positions, after.positions, text))
    return found


def _stages(before: Sequence[Stage], after: Sequence[Stage]) -> list[Change]:
    pairs = aligned(before, after)
    shared = _shared([(before[i], after[j]) for i, j in pairs if i is not None and j is not None])
    found: list[Change] = []
    for i, j in pairs:
        if i is None and j is not None:
            text = f"{_name(j, len(after))} added: {_what(after[j])}"
            found.append(Change(f"stages.{j}", None, _dump(after[j]), text))
        elif j is None and i is not None:
            text = f"{_name(i, len(before))} removed: {_what(before[i])}"
            found.append(Change(f"stages.{i}", _dump(before[i]), None, text))
        elif i is not None and j is not None:
            place, field = f"{_name(j, len(after))} ", f"stages.{j}"
            found += _prefixed(place, _stage(before[i], after[j], field))
            if not shared:
                found += _prefixed(place, _scorers(before[i], after[j], field))
    return found + shared


def _prefixed(prefix: str, found: Sequence[Change]) -> list[Change]:
    return [replace(change, words=prefix + change.words) for change in found]


def aligned(before: Sequence[Stage], after: Sequence[Stage]) -> list[tuple[int | None, int | None]]:
    """Pair the stages of two schedules in order, so that their layers are as near as can be.

    Returns:
        (index before, index after) in order of layers; None where a stage has no partner.
    """
    if len(before) > len(after):
        return [(i, j) for j, i in aligned(after, before)]

    @cache
    def cheapest(i: int, j: int) -> tuple[int, tuple[int, ...]]:
        if i == len(before):
            return 0, ()
        rest, places = cheapest(i + 1, j + 1)
        best = abs(before[i].layer - after[j].layer) + rest, (j, *places)
        return best if len(after) - j == len(before) - i else min(best, cheapest(i, j + 1))

    partner = {j: i for i, j in enumerate(cheapest(0, 0)[1])}
    return [(partner.get(j), j) for j in range(len(after))]


def _stage(before: Stage, after: Stage, field: str) -> list[Change]:
    found = []
    if before.layer != after.layer:
        text = f"moved from layer {before.layer} to {after.layer}"
        found.append(Change(f"{field}.layer", before.layer, after.layer, text))
    if before.retention != after.retention:
        old, new = _apart(100 * before.retention, 100 * after.retention, digits=3)
        text = f"keeps {new}% instead of {old}%"
        found.append(Change(f"{field}.retention", before.retention, after.retention, text))
    if _same_part(before.restorer, after.restorer):
        found += _fields(before.restorer, after.restorer, f"{field}.restorer", "restorer")
    elif before.restorer != after.restorer:
        text = f"restores by {_restorer(after)} instead of {_restorer(before)}"
        if after.restorer is None:
            text = f"restores nothing any more ({_restorer(before)} before)"
        elif before.restorer is None:
            text = f"restores by {_restorer(after)}, and nothing before"
        was, now = (s.restorer and s.restorer.model_dump() for s in (before, after))
        found.append(Change(f"{field}.restorer", was, now, text))
    return found + _chosen(before, after, field)


def _chosen(before: Stage, after: Stage, field: str) -> list[Change]:
    """Return what changed in how a set is chosen, and in what it counts."""
    found = []
    if _same_part(before.selector, after.selector):
        found += _fields(before.selector, after.selector, f"{field}.selector", "selector")
    elif before.selector != after.selector:
        old, new = (s.selector and s.selector.model_dump() for s in (before, after))
        text = f"chooses by {_part(after.selector)} instead of {_part(before.selector)}"
        found.append(Change(f"{field}.selector", old, new, text))
    if before.mass != after.mass:
        text = f"has mass {_value(after.mass)} instead of {_value(before.mass)}"
        found.append(Change(f"{field}.mass", before.mass, after.mass, text))
    return found


def _same_part(before: Any, after: Any) -> bool:
    return before is not None and type(before) is type(after)


def _fields(before: Any, after: Any, field: str, kind: str) -> list[Change]:
    """Return what changed among the fields of a part that stayed the same one."""
    old, new = (_flat(part.model_dump(mode="json")) for part in (before, after))
    found = []
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            was, now = _apart(old.get(key), new.get(key))
            text = f"{kind} {after.name}'s {key} {was} -> {now}"
            found.append(Change(f"{field}.{key}", old.get(key), new.get(key), text))
    return found


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested data as dotted names and plain values."""
    inner = enumerate(data) if isinstance(data, list) else data.items()
    found: dict[str, Any] = {}
    for key, value in inner:
        name = f"{prefix}{key}"
        nested = isinstance(value, dict | list) and value
        found |= _flat(value, f"{name}.") if nested else {name: value}
    return found


def _shared(pairs: Sequence[tuple[Stage, Stage]]) -> list[Change]:
    """Return the scorers' changes where all stages have the same ones: a search shares weights."""
    # A later stage without scorers reuses the first one's scores, so it follows its changes.
    told = [_scorers(*pair, "stages.*") for pair in pairs if pair[0].scorers or pair[1].scorers]
    if not told or any(each != told[0] for each in told):
        return []
    return _prefixed("in every stage: " if len(pairs) > 1 else "", told[0])


def _scorers(before: Stage, after: Stage, field: str) -> list[Change]:
    """Return what changed among the scorers of a stage."""
    if before.scorers and not after.scorers:
        text = f"reuses the stage before's scores instead of its own ({_names(before)})"
        return [Change(f"{field}.scorers", _names(before), None, text)]
    if after.scorers and not before.scorers:
        text = f"has its own scores ({_names(after)}) instead of the stage before's"
        return [Change(f"{field}.scorers", None, _names(after), text)]
    old = {scorer.name: scorer.model_dump() for scorer in before.scorers}
    new = {scorer.name: scorer.model_dump() for scorer in after.scorers}
    found = []
    for name in dict.fromkeys((*old, *new)):
        where = f"{field}.{name}"
        if name not in new:
            text = f"{name} no longer scores (score weight was {_value(old[name]['weight'])})"
            found.append(Change(where, old[name], None, text))
        elif name not in old:
            text = f"{name} scores too, with score weight {_value(new[name]['weight'])}"
            found.append(Change(where, None, new[name], text))
        else:
            for key, value in new[name].items():
                if (was := old[name].get(key)) != value:
                    text = f"{name}{_field(key, was, value)}"
                    found.append(Change(f"{where}.{key}", was, value, text))
    return found


def _field(key: str, old: Any, new: Any) -> str:
    if key == "per_crop":
        places = {True: "inside each crop", False: "over the whole image"}
        return f" ranks {places[new]} instead of {places[old]}"
    was, now = _apart(old, new)
    return f"'s {'score weight' if key == 'weight' else key} {was} -> {now}"


def _name(index: int | None, count: int) -> str:
    if count == 1:
        return "the stage"
    place = index or 0
    return f"{_ORDINALS[place] if place < len(_ORDINALS) else f'{place + 1}th'} stage"


def _what(stage: Stage) -> str:
    return f"layer {stage.layer}, keeps {_share(stage.retention)}"


def _dump(stage: Stage) -> dict[str, Any]:
    return stage.model_dump(mode="json")


def _names(stage: Stage) -> str:
    return ", ".join(scorer.name for scorer in stage.scorers)


def _restorer(stage: Stage) -> str:
    return "nothing" if stage.restorer is None else _part(stage.restorer)


def _part(part: Restorer | Selector | None) -> str:
    """Return a part's name and fields; without a selector the highest scores stay."""
    if part is None:
        return "top"
    data = part.model_dump()
    name = data.pop("name")
    return f"{name} ({', '.join(f'{k} {_value(v)}' for k, v in data.items())})" if data else name


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"


def _apart(old: Any, new: Any, digits: int = 4) -> tuple[str, str]:
    """Return two values for people, with as many digits as tell them apart."""
    if isinstance(old, float) and isinstance(new, float):
        while digits < 17 and f"{old:.{digits}g}" == f"{new:.{digits}g}":
            digits += 1
        return f"{old:.{digits}g}", f"{new:.{digits}g}"
    return _value(old), _value(new)


def _value(value: Any) -> str:
    """Return a value for people; numbers with the digits that tell a difference."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return repr(value) if value is None or isinstance(value, str) else str(value)
