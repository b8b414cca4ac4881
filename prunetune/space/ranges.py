"""Ranges that a study gives for what is searched: ``[space.ranges]`` of a study spec.

``"topv.sigma" = [1, 30]`` is a range of a part's field, ``[1, 30, "log"]`` one on a logarithmic
scale (``"linear"`` undoes that), ``"topv.solver" = ["end_on_v", "literal"]`` a choice, and one
value alone fixes the field. ``"retention.1" = [0.25, 0.375]`` bounds what a first stage leaves of
all image tokens, ``"share.2" = [0.5, 1]`` what a second one leaves of the first one's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from prunetune.registry import Registry, Tunable

Values = tuple[bool | int | float | str, ...]
Bounds = tuple[float, float]
_SCALES = ("linear", "log")
_STAGE = re.compile(r"(retention|share)\.([1-9])")


@dataclass(frozen=True)
class Box:
    """What bounds a schedule's retentions beside the budget.

    Attributes:
        retention: Stage (from 1 on) to bounds of its retention.
        share: Stage to bounds of its retention over the stage before's.
    """

    retention: Mapping[int, Bounds] = field(default_factory=dict)
    share: Mapping[int, Bounds] = field(default_factory=dict)

    def within(self, stage: int, low: float, high: float, before: float) -> Bounds:
        """Return what of ``low .. high`` lies in the box; the nearest point if nothing does."""
        for bounds, unit in ((self.retention, 1.0), (self.share, before)):
            if stage in bounds:
                least, most = (unit * bound for bound in bounds[stage])
                low, high = (
                    (min(max(bound, least), most) for bound in (low, high))
                    if (least <= high and low <= most)
                    else ((low, low) if most < low else (high, high))
                )
        return low, high


def box_of(ranges: Mapping[str, Values], stages: int) -> Box:
    """Return the bounds of retentions among ranges.

    Raises:
        ValueError: One line: they are no two rising numbers in 0 to 1, or of a last stage.
    """
    found: dict[str, dict[int, Bounds]] = {"retention": {}, "share": {}}
    for name, values in ranges.items():
        if (match := _STAGE.fullmatch(name)) is None:
            continue
        kind, stage = match[1], int(match[2])
        if stage >= stages:
            raise ValueError(
                f"ranges.{name}: received a range of stage {stage}, allowed stages before the last "
                f"of {stages}: the budget decides what the last one leaves"
            )
        if kind == "share" and stage == 1:
            raise ValueError(f"ranges.{name}: before stage 1 everything is there; use retention.1")
        low, high = _rising(name, values)
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"ranges.{name}: received {list(values)}, allowed 0 to 1")
        found[kind][stage] = (low, high)
    return Box(**found)


def check_ranges(ranges: Mapping[str, Values], stages: int) -> None:
    """Check ranges without a model.

    Raises:
        ValueError: One line that names the range, the value received and what is allowed.
    """
    box_of(ranges, stages)
    for name, values in ranges.items():
        if _STAGE.fullmatch(name):
            continue
        part, _, key = name.partition(".")
        kind = _kind(name, part)
        if key not in kind.model_fields or key in ("name", "weight"):
            known = ", ".join(k for k in kind.model_fields if k not in ("name", "weight"))
            raise ValueError(
                f"ranges.{name}: {part} has no field {key!r} to search; it has: {known}"
            )
        _made(kind, part, key, values)


def searched(kind: type[BaseModel], name: str, ranges: Mapping[str, Values]) -> dict[str, Tunable]:
    """Return a part's hyperparameters that have a search range, a study's own ones included."""
    found = {
        key: next(m for m in info.metadata if isinstance(m, Tunable))
        for key, info in kind.model_fields.items()
        if any(isinstance(m, Tunable) for m in info.metadata)
    }
    given = {
        key: values
        for where, values in ranges.items()
        for part, _, key in [where.partition(".")]
        if part == name and key in kind.model_fields
    }
    return found | {key: _made(kind, name, key, values) for key, values in given.items()}


def idle(ranges: Mapping[str, Values], parts: Iterable[str]) -> list[str]:
    """Return the names of ranges that change nothing: of fields of other parts than these."""
    known = set(parts)
    return [
        name
        for name in ranges
        if not _STAGE.fullmatch(name) and name.partition(".")[0] not in known
    ]


def is_open(tunable: Tunable) -> bool:
    """Tell whether there is more than one value to choose from."""
    return len(tunable.choices) != 1


def _kind(name: str, part: str) -> type[BaseModel]:
    from prunetune.restorers import RESTORERS
    from prunetune.scorers import SCORERS
    from prunetune.selectors import SELECTORS

    tables: tuple[Registry[Any], ...] = (SCORERS, SELECTORS, RESTORERS)
    for table in tables:
        if part in table:
            kind: type[BaseModel] = table.get(part)
            return kind
    raise ValueError(
        f"ranges.{name}: unknown part {part!r}; allowed a field of a scorer, selector or restorer, "
        "such as topv.sigma, or retention.N or share.N of a stage"
    )


def _made(kind: type[BaseModel], part: str, key: str, values: Values) -> Tunable:
    """Return the range that a study gives for a field.

    Raises:
        ValueError: It is not one.
    """
    name, info = f"{part}.{key}", kind.model_fields[key]
    own = next((m for m in info.metadata if isinstance(m, Tunable)), Tunable())
    ends = (
        [value for value in values if value not in _SCALES]
        if info.annotation in (int, float)
        else list(values)
    )
    if not ends:
        raise ValueError(f"ranges.{name}: received {list(values)}, allowed values of the field")
    for value in ends:
        _check_value(kind, part, key, value)
    if info.annotation not in (int, float) or len(values) == 1:
        if len(set(ends)) != len(ends):
            raise ValueError(f"ranges.{name}: received {list(values)}, each may appear once")
        return Tunable(choices=tuple(ends), shown=own.shown)
    low, high = _rising(name, values)
    log = values[2] == "log" if len(values) == 3 else own.log and low >= 0
    if log and low < 0:
        raise ValueError(f"ranges.{name}: received {list(values)}, allowed no 'log' below 0")
    levels = own.levels if info.annotation is float else 0
    return Tunable(low, high, log=log, levels=levels, shown=own.shown)


def _check_value(kind: type[BaseModel], part: str, key: str, value: Any) -> None:
    try:
        # As a config file has it: a bool is no number. Whole numbers stand for floats.
        kind.model_validate({"name": part, key: value}, strict=not isinstance(value, int))
        if isinstance(value, bool) != (kind.model_fields[key].annotation is bool):
            raise ValueError(f"ranges.{part}.{key}: received {value!r}, allowed another type")
    except ValidationError as error:
        from prunetune.messages import describe

        raise ValueError(f"ranges.{part}.{describe(error)}") from None


def _rising(name: str, values: Sequence[Any]) -> Bounds:
    """Return two rising numbers; a third entry may say the scale."""
    numbers = [v for v in values[:2] if isinstance(v, int | float) and not isinstance(v, bool)]
    scale: Literal[True] | bool = len(values) < 3 or values[2] in _SCALES
    if len(numbers) != 2 or len(values) > 3 or not scale or not numbers[0] < numbers[1]:
        raise ValueError(
            f"ranges.{name}: received {list(values)}, allowed two rising numbers, and after them "
            "'log' or 'linear'"
        )
    return float(numbers[0]), float(numbers[1])
