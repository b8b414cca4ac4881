"""Whether pruning pays at a shape: from measured times and their spread, nothing else."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prunetune.deploy.timing import Run, Spread, spread

ENOUGH = 5
"""Rounds from which on the interval of a median holds it with at least 90%."""


@dataclass(frozen=True)
class Verdict:
    """Does pruning pay?

    Attributes:
        word: ``pays``, ``breaks even`` (no difference beyond the spread) or ``does not pay``.
        at_new_tokens: Answer length at which gain and loss cancel, where there is one.
        text: A sentence with the numbers.
    """

    word: Literal["pays", "breaks even", "does not pay"]
    at_new_tokens: int | None
    text: str


def ratio(over: Sequence[Run], under: Sequence[Run], part: str = "total") -> Spread:
    """Return the ratio of two cases' times, from the ratios of each round."""
    return spread([getattr(a, part) / getattr(b, part) for a, b in zip(over, under)])


def judge(before: Sequence[Run], after: Sequence[Run], new_tokens: int) -> Verdict:
    """Judge a pruned case against the unpruned one.

    The sign of a difference counts only where the whole interval of its rounds has it. Time to the
    first token and time of each further one are judged apart: where one gains and the other loses,
    there is an answer length at which they cancel.
    """
    whole = ratio(before, after)
    first = spread([_first(a, new_tokens) - _first(b, new_tokens) for a, b in zip(before, after)])
    step = spread([a.decode - b.decode for a, b in zip(before, after)]) if new_tokens > 1 else None
    at = _crossing(first, step)
    shown = f"{whole.median:.2f}x end to end ({whole.low:.2f} to {whole.high:.2f})"
    more = _explained(first, step, at)
    if len(after) < ENOUGH:
        more += f" (only {len(after)} round(s): {ENOUGH} or more make the spread mean something)"
    # On a busy machine the ratios' median and that of the times may be on two sides.
    gained = median_of(before, "total") - median_of(after, "total")
    if whole.low > 1 and gained > 0:
        return Verdict("pays", at, f"pays at this shape: {shown}{more}")
    if whole.high < 1 and gained < 0:
        return Verdict("does not pay", at, f"does not pay at this shape: {shown}{more}")
    where = f" at {at} new tokens" if at is not None else " here"
    return Verdict(
        "breaks even", at, f"breaks even{where}: {shown} is no difference beyond the spread{more}"
    )


def _first(run: Run, new_tokens: int) -> float:
    """Return the time to the first token."""
    return run.total - run.decode * (new_tokens - 1) if new_tokens > 1 else run.total


def _sign(value: Spread) -> int:
    return (value.low > 0) - (value.high < 0)


def _crossing(first: Spread, step: Spread | None) -> int | None:
    """Return the answer length at which first-token gain and per-token loss cancel."""
    if step is None or not _sign(first) * _sign(step) < 0:
        return None
    return 1 + math.ceil(abs(first.median / step.median) - 1e-6)


def _explained(first: Spread, step: Spread | None, at: int | None) -> str:
    parts = [f"first token {_change(first)}"]
    if step is not None:
        parts.append(f"each further token {_change(step)}")
    text = f"; {', '.join(parts)}"
    if at is None:
        return text
    side = "shorter" if first.median > 0 else "longer"
    return f"{text}: it gains with answers {side} than {at} tokens"


def _change(value: Spread) -> str:
    if not _sign(value):
        return "unchanged"
    return f"{1e3 * abs(value.median):.3g} ms {'earlier' if value.median > 0 else 'later'}"


def median_of(runs: Sequence[Run], part: str) -> float:
    """Return the median of one field over rounds."""
    return float(statistics.median(getattr(run, part) for run in runs))
