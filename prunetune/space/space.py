"""The search space: flat unit parameters, decoded so that every suggestion meets the budget.

Every parameter is a float in [0, 1] that is always suggested: samplers then see one fixed space
(conditional or moving ranges drop out of the joint model), and any of them can be used.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunetune.budget import Budget, Level, ModelFacts, as_budget
from prunetune.space.leveling import LevelCodec, left_of, pixels_of
from prunetune.space.narrowed import SpaceSpec
from prunetune.space.opened import check_searched, codecs, selector_codec
from prunetune.space.restoring import RestorerCodec

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from prunetune.config import ModelRef, PruningConfig
    from prunetune.restorers import Restorer
    from prunetune.scorers import Scorer
    from prunetune.selectors import Selector
    from prunetune.spec import StudySpec

# Digits of a searched budget's share.
_DIGITS = 4


@dataclass(frozen=True)
class Dimension:
    """One unit parameter.

    Attributes:
        name: As Optuna stores it.
        shown: What it decides, in a few words.
    """

    name: str
    shown: str


class Space:
    """Decodes unit parameters into configs of one model that meet one budget, and back.

    Args:
        spec: What is searched over.
        budget: Met by every point; a number is a mean retention.
        facts: The model.
        up_to: Makes the budget a parameter, too: points meet one from ``budget`` up to here.

    Attributes:
        budget: The one budget; of a range the geometric middle, where what is not searched lies.

    Raises:
        ConfigError: No schedule of this space meets the budget (the message names the smallest
            that can be attained), or no scorer is left to search with.
    """

    def __init__(
        self,
        spec: SpaceSpec,
        budget: float | Budget,
        facts: ModelFacts,
        up_to: Budget | None = None,
    ) -> None:
        # As the study says it, and what of that is searched.
        self.spec, self.facts = spec, facts
        self._open = spec.restricted().narrowed_to(facts)
        self.least, self.most = as_budget(budget), up_to or as_budget(budget)
        self._levels = LevelCodec(self._open, facts, (self.least, self.most))
        self._weights, self._schedule = codecs(self._open, facts, (self.least, self.most))
        self._restorer = RestorerCodec(spec.restorers, spec.ranges)
        self._selector = selector_codec(spec, facts, tuple(self._weights.scorers))
        self.budget = self.budget_at(0.5)
        self._dimensions = self._list_dimensions()

    @classmethod
    def of(cls, spec: "StudySpec", facts: ModelFacts) -> "Space":
        """Return the space of a study."""
        least, most = spec.budgets(facts)
        return cls(spec.space, least, facts, most)

    def _list_dimensions(self) -> tuple[Dimension, ...]:
        names = {"budget": "the budget, between its bounds"} if self.ranges else {}
        names |= self._levels.names()
        names |= self._schedule.names() | self._weights.names()
        names |= self._selector.names()
        if len(self._open.mass) > 1:
            shown = ", ".join(f"{h:g}" for h in self._open.mass)
            names["mass"] = f"what a kept token counts by the tokens it stands for, one of: {shown}"
        names |= self._restorer.names()
        if len(self.spec.separators) > 1:
            names["separators"] = f"one of: {', '.join(self.spec.separators)}"
        if len(self.spec.positions) > 1:
            names["positions"] = f"one of: {', '.join(self.spec.positions)} (layer 0 only)"
        return tuple(Dimension(name, shown) for name, shown in names.items())

    def dimensions(self) -> tuple[Dimension, ...]:
        """Return the unit parameters in the order they are suggested."""
        return self._dimensions

    def check_ranges(self) -> None:
        """Refuse ranges of parts that this space does not search: they would do nothing.

        Studies of earlier releases may have such ranges, so only what makes a new one asks.

        Raises:
            ConfigError: There are some.
        """
        last = self._schedule.last
        scorers = [name for name in self._weights.scorers if self._weights.usable(name, last)]
        check_searched(self.spec, scorers)

    @property
    def latest_first(self) -> int:
        """Last layer at which a first stage can be and meet the budget."""
        return self._schedule.latest(self.budget)

    @property
    def ranges(self) -> bool:
        """Whether the budget is a parameter."""
        return self.most.share > self.least.share

    def budget_at(self, unit: float) -> Budget:
        """Return the budget that points with this value of ``budget`` meet."""
        if not self.ranges:
            return self.least
        low, high = self.least.share, self.most.share
        # A config of half the cost is as far away at 0.1 as it is at 0.5.
        share = round(low * (high / low) ** unit, _DIGITS)
        return self.least.at(min(max(share, low), high))

    def spent(self, config: "PruningConfig") -> Budget:
        """Return the budget that a config of this space was made for."""
        if not self.ranges and config.stages:
            return self.least
        level = self._levels.of(config)
        share = left_of(self.least, level).of(config.stages, self.facts.num_layers)
        return self.least.at(share * self.least.layer_cost(level.tokens))

    def tokens(self, config: "PruningConfig") -> float:
        """Return the share of the full pictures' tokens that a config's pixels leave."""
        return self._levels.of(config).tokens

    def alone(self, budget: Budget | None = None) -> "PruningConfig | None":
        """Return what meets a budget by smaller pictures alone; None where no level does."""
        level = self._levels.alone(budget or self.budget)
        return None if level is None or level.share == 1.0 else self._smaller(level)

    def _smaller(self, level: Level) -> "PruningConfig":
        from prunetune.config import PruningConfig

        return PruningConfig(model=self.model_ref(), pixels=pixels_of(level), stages=())

    def _unit_of(self, config: "PruningConfig") -> float:
        if not self.ranges:
            return 0.5
        low, high = self.least.share, self.most.share
        share = self.spent(config).share
        return min(max(math.log(share / low) / math.log(high / low), 0.0), 1.0)

    @property
    def most_stages(self) -> int:
        """Most stages of a schedule."""
        return self._schedule.counts[-1]

    @property
    def first_layer(self) -> int:
        """First layer at which a stage can be."""
        return self._schedule.first

    def holds(self, config: "PruningConfig") -> bool:
        """Tell whether the space has all that a config is made of: scorers, selectors, the rest."""
        if config.pixels is not None and self.spec.pixels is False:
            return False
        return all(
            {s.name for s in stage.scorers} <= set(self._weights.scorers)
            and (stage.selector is None or stage.selector.name in self.spec.selectors)
            and (not stage.mass or any(self._open.mass))
            and (stage.retention > 0 or self._open.exit)
            and (self.spec.parts != "layer-0" or stage.layer == 0)
            and (self.facts.last_stage is None or stage.layer <= self.facts.last_stage)
            for stage in config.stages
        )

    def model_ref(self) -> "ModelRef":
        """Return which model the configs of this space are for."""
        from prunetune.config import ModelRef

        return ModelRef(
            model_type=self.facts.model_type,
            num_layers=self.facts.num_layers,
            name=self.facts.name,
            revision=self.facts.revision,
            fingerprint=self.facts.fingerprint,
        )

    def suggest(self, trial: "BaseTrial") -> dict[str, float]:
        """Suggest every parameter, always."""
        return {d.name: trial.suggest_float(d.name, 0.0, 1.0) for d in self._dimensions}

    def decode(self, units: Mapping[str, float]) -> "PruningConfig":
        """Return the config of a point; its cost is the budget to 1e-9, and never above it."""
        from prunetune.config import PruningConfig, Stage
        from prunetune.space.units import pick

        level = self._levels.decode(units)
        budget = left_of(self.budget_at(units.get("budget", 0.5)), level)
        if budget.share >= 1 and level.share < 1:
            return self._smaller(level)
        layers, retentions = self._schedule.decode(units, budget)
        selector, mass = self._selector.decode(units), pick(self._open.mass, units.get("mass", 0.0))
        restorer = self._restorer.decode(units, retentions[0], selected=selector is not None)
        scorers = self._scored(units, layers, selector, restorer)
        positions = pick(self.spec.positions, units.get("positions", 0.0))
        stages = [
            Stage(
                layer=layer,
                retention=retention,
                scorers=scored,
                restorer=None if k else restorer,
                selector=selector,
                mass=mass,
            )
            for k, (layer, retention, scored) in enumerate(zip(layers, retentions, scorers))
        ]
        if (end := self._schedule.end(units, budget)) < self.facts.num_layers:
            stages.append(Stage(layer=end, retention=0.0))
        return PruningConfig(
            model=self.model_ref(),
            separators=pick(self.spec.separators, units.get("separators", 0.0)),
            positions=positions if layers[0] == 0 else "original",
            pixels=pixels_of(level),
            stages=tuple(stages),
        )

    def _scored(
        self,
        units: Mapping[str, float],
        layers: list[int],
        selector: "Selector | None",
        restorer: "Restorer | None",
    ) -> "list[tuple[Scorer, ...]]":
        """Return the stages' scorers: none where no score counts, and all that a selector uses."""
        if selector is None:
            return self._weights.decode(units, layers)
        if restorer is None and selector.ignores_scores and not selector.uses_scorers:
            # Equal configs are then seen as equal, and nothing is computed for nothing.
            return [()] * len(layers)
        names = sorted(selector.uses_scorers)
        found = self._weights.decode(units, layers)
        return [
            self._weights.added(scorers, names, units) if scorers or not k else ()
            for k, scorers in enumerate(found)
        ]

    def encode(self, config: "PruningConfig") -> dict[str, float]:
        """Return the point that decodes to ``config``, or to the nearest config of this space.

        Parameters that ``config`` leaves open are 0.5.
        """
        from prunetune.space.units import place

        unit, stages = self._unit_of(config), [s for s in config.stages if s.retention]
        level = self._levels.of(config)
        said = {"budget": unit, **self._levels.encode(level)}
        if not stages:
            return {d.name: said.get(d.name, 0.5) for d in self._dimensions}
        exits = [s.layer for s in config.stages if not s.retention]
        budget, masses = left_of(self.budget_at(unit), level), self._open.mass
        found = {
            **said,
            **self._restorer.encode(stages[0]),
            **self._selector.encode(stages[0]),
            "mass": place(masses, min(masses, key=lambda h: abs(h - stages[0].mass))),
            "separators": place(self.spec.separators, config.separators),
            "positions": place(self.spec.positions, config.positions),
            **self._schedule.encode(
                [s.layer for s in stages],
                [s.retention for s in stages],
                budget,
                exits[0] if exits else None,
            ),
            **self._weights.encode(stages[: self.spec.max_stages]),
        }
        return {d.name: found.get(d.name, 0.5) for d in self._dimensions}
