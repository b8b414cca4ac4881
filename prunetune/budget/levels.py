"""Levels of pixels: which there are, what they leave of the tokens, which can meet a budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunetune.budget.bounds import Budget
from prunetune.budget.costs import mean_retention
from prunetune.pixels import shrinks

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

COARSE = (0.75, 0.56, 0.42, 0.32, 0.25, 0.18, 0.13, 0.1, 0.075, 0.056, 0.042, 0.032, 0.025, 0.018)
"""Shares of a picture's pixels: each about three quarters of the one before, from 1 down."""
_NEAR = (1.25, 1.12, 1.06, 1.03, 1.0, 0.95, 0.9)
_LEAST, _DIGITS = 0.01, 4


@dataclass(frozen=True)
class Level:
    """A level of pixels, on the pictures of a calibration set.

    Attributes:
        share: Of the pixels that the processor would have used; 1: the full picture.
        tokens: Of the full pictures' image tokens, all samples together.
    """

    share: float
    tokens: float


FULL = Level(1.0, 1.0)


def stated_retention(config: "PruningConfig") -> float:
    """Return a config's mean retention as far as it is known without pictures.

    Where it makes pictures smaller, what was measured stands in its provenance; without, it is the
    share of the smaller pictures' tokens.
    """
    measured = config.provenance.mean_retention
    if shrinks(config.pixels) and measured is not None:
        return measured
    return mean_retention(config.stages, config.model.num_layers)


def candidates(shares: Iterable[float]) -> list[float]:
    """Return levels to be looked at, from large to small: coarse ones, and finer near budgets.

    Args:
        shares: Of the unpruned model's cost that budgets leave; where tokens follow pixels, a level
            of this share meets one without pruning.
    """
    fine = (round(share * factor, _DIGITS) for share in shares for factor in _NEAR)
    return sorted({s for s in (*COARSE, *fine) if _LEAST <= s < 1.0}, reverse=True)


def distinct(levels: Iterable[Level]) -> list[Level]:
    """Return levels from large to small, of those with the same number of tokens the largest."""
    found: list[Level] = []
    for level in sorted(levels, key=lambda level: -level.share):
        if not found or level.tokens < found[-1].tokens - 1e-9:
            found.append(level)
    return found


def fitting(levels: Iterable[Level], least: Budget, most: Budget) -> list[Level]:
    """Return the levels that are worth searching: each can meet a budget, with stages or without.

    Of those that meet even the least budget by themselves the largest only: smaller ones would
    give tokens away.

    Args:
        levels: Known ones; the full picture is among the answer.
        least: The smallest budget.
        most: The largest one.
    """
    known = distinct([FULL, *levels])
    alone = [level for level in known if least.layer_cost(level.tokens) <= least.share]
    return [level for level in known if level not in alone[1:] or most.share >= 1]


def largest_fitting(levels: Sequence[Level], budget: Budget) -> Level | None:
    """Return the largest level that meets a budget without pruning; None where none does."""
    met = [lv for lv in distinct(levels) if budget.layer_cost(lv.tokens) <= budget.share + 1e-12]
    return max(met, key=lambda level: level.share, default=None)
