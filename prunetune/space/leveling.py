"""Levels of pixels from a unit parameter, and what is left of a budget at each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunetune.budget import FULL, Budget, Level, ModelFacts, fitting, largest_fitting
from prunetune.errors import ConfigError
from prunetune.pixels import Share, shrinks
from prunetune.space.narrowed import SpaceSpec
from prunetune.space.units import Units, pick, place

if TYPE_CHECKING:
    from prunetune.config import PruningConfig


class LevelCodec:
    """Decodes levels, each of which can meet the budget, and back.

    Args:
        spec: What is searched.
        facts: The model, with what its levels leave of the calibration pictures' tokens.
        budgets: The least and the largest.
    """

    def __init__(self, spec: SpaceSpec, facts: ModelFacts, budgets: Sequence[Budget]) -> None:
        self._known = {level.share: level for level in (FULL, *facts.levels)}
        self.levels: Sequence[Level] = (FULL,)
        if spec.pixels is not False:
            self.levels = fitting(facts.levels, budgets[0], budgets[-1])

    def names(self) -> dict[str, str]:
        """Return the parameter, where there is something to choose."""
        if len(self.levels) < 2:
            return {}
        shown = ", ".join(f"{level.share:g}" for level in self.levels)
        return {"pixels": f"share of a picture's pixels, one of: {shown}"}

    def decode(self, units: Mapping[str, float]) -> Level:
        """Return a point's level."""
        return pick(self.levels, units.get("pixels", 0.0))

    def encode(self, level: Level) -> Units:
        """Return the unit of a level, or of the nearest one."""
        nearest = min(self.levels, key=lambda known: abs(known.share - level.share))
        return {"pixels": place(self.levels, nearest)}

    def of(self, config: "PruningConfig") -> Level:
        """Return a config's level.

        Raises:
            ConfigError: What it leaves of the tokens is not known.
        """
        pixels = config.pixels
        if not shrinks(pixels):
            return FULL
        level = self._known.get(pixels.share) if isinstance(pixels, Share) else None
        if level is None:
            known = ", ".join(f"{share:g}" for share in self._known)
            raise ConfigError(
                f"pixels: received {pixels.shown if pixels else pixels}, known to this search: "
                f"{known}; name it in space.pixels"
            )
        return level

    def alone(self, budget: Budget) -> Level | None:
        """Return the largest level that meets a budget without pruning; None: none does."""
        return largest_fitting(self.levels, budget)


def left_of(budget: Budget, level: Level) -> Budget:
    """Return what a budget leaves to stages at a level; a share of 1 or more: none are needed."""
    return budget if level.tokens == 1.0 else budget.of_smaller(level.tokens)


def pixels_of(level: Level) -> Share | None:
    """Return what a config says for a level."""
    return None if level.share == 1.0 else Share(share=level.share)
