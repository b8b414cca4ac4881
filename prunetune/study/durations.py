"""Durations as people read them: estimates rounded, bounds rounded up."""

import math
from collections.abc import Callable


def shown(seconds: float) -> str:
    """Return a duration for people."""
    return _shown(seconds, round)


def bound(seconds: float) -> str:
    """Return a duration that is a bound, for people: never less than it is."""
    return _shown(seconds, math.ceil)


def _shown(seconds: float, whole: Callable[[float], int]) -> str:
    if seconds < 1:
        return f"{whole(100 * seconds) / 100:g} s"
    if seconds <= 99:
        return f"{whole(seconds)} s"
    if seconds < 600:
        minutes, rest = divmod(whole(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if seconds <= 5940:
        return f"{whole(seconds / 60)} min"
    return f"{whole(seconds / 360) / 10:.1f} h"
