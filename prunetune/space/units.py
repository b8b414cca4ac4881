"""Numbers in [0, 1] to choices and rounded values, and back."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from prunetune.registry import Tunable

T = TypeVar("T")
Units = dict[str, float]


def clip(unit: float) -> float:
    """Return ``unit`` moved into [0, 1]."""
    return min(max(unit, 0.0), 1.0)


def pick(choices: Sequence[T], unit: float) -> T:
    """Return the choice whose equal part of [0, 1] holds ``unit``."""
    return choices[min(int(clip(unit) * len(choices)), len(choices) - 1)]


def place(choices: Sequence[Any], value: Any) -> float:
    """Return the middle of the part of [0, 1] that belongs to ``value``; of the first if absent."""
    return ((choices.index(value) if value in choices else 0) + 0.5) / len(choices)


def between(low: float, high: float, unit: float) -> float:
    """Return the point at ``unit`` of ``[low, high]``, on the coarsest decimal grid that fits.

    Four digits are readable and finer than one token in most images; narrow ranges need more.
    """
    value = low + clip(unit) * (high - low)
    for digits in (4, 6, 8, 10, 12):
        scale = 10.0**digits
        # Float noise of an end on the grid; a coarse grid must not let it be left by more.
        noise = min(1e-3, 1e-10 * scale)
        first = math.ceil(low * scale - noise) / scale
        last = math.floor(high * scale + noise) / scale
        if first <= last:
            return min(max(round(value, digits), first), last)
    return low


def fraction(low: float, high: float, value: float) -> float:
    """Return where ``value`` lies in ``[low, high]``; the middle if that is a point."""
    return 0.5 if high - low < 1e-12 else clip((value - low) / (high - low))


def decode_field(tunable: Tunable, unit: float, *, whole: bool) -> Any:
    """Return a hyperparameter's value: a choice, an integer, or four significant digits."""
    value = tunable.decode(clip(unit))
    if tunable.choices:
        return value
    if whole:
        return round(value)
    short = float(f"{value:.4g}")
    # Halfway points of ranges around zero come out as 1e-17.
    short = short if tunable.log else round(short, 6)
    return min(max(short, tunable.low), tunable.high)


def encode_field(tunable: Tunable, value: Any) -> float:
    """Return the unit that decodes to ``value``, or to the nearest end of the range."""
    if tunable.choices:
        return place(tunable.choices, value)
    if tunable.log:
        value = min(max(value, tunable.low), tunable.high)
        if not tunable.low:
            return clip(math.log1p(value) / math.log1p(tunable.high))
        return clip(math.log(value / tunable.low) / math.log(tunable.high / tunable.low))
    return fraction(tunable.low, tunable.high, value)
