"""The search space: flat unit parameters, decoded so that every suggestion meets the budget.

Every parameter is a float in [0, 1] that is always suggested: samplers then see one fixed space
(conditional or moving ranges drop out of the joint model), and any of them can be used.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunetune.budget import Budget, ModelFacts, as_budget
from prunetune.errors import ConfigError
from prunetune.space.narrowed import SpaceSpec
from prunetune.space.restoring import RestorerCodec

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from prunetune.config import ModelRef, PruningConfig
    from prunetune.space.schedule import ScheduleCodec
    from prunetune.space.weighting import WeightCodec
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
        self.spec, self.facts = spec, facts
        self.least, self.most = as_budget(budget), up_to or as_budget(budget)
        self._weights, self._schedule = self._codecs()
        self._restorer = RestorerCodec(spec.restorers)
        self.budget = self.budget_at(0.5)
        self._dimensions = self._list_dimensions()

    @classmethod
    def of(cls, spec: "StudySpec", facts: ModelFacts) -> "Space":
        """Return the space of a study."""
        least, most = spec.budgets(facts)
        return cls(spec.space, least, facts, most)

    def _codecs(self) -> "tuple[WeightCodec, ScheduleCodec]":
        from prunetune.space.schedule import ScheduleCodec
        from prunetune.space.weighting import WeightCodec

        spec, depth = self.spec, self.facts.num_layers
        fixed = spec.stage_layers
        first, last = (fixed[0], fixed[-1]) if fixed else spec.layers or (0, depth - 1)
        if last >= depth:
            raise ConfigError(
                f"space.{'stage_layers' if fixed else 'layers'}: received {last}, allowed 0 to "
                f"{depth - 1} for a model of {depth} decoder layers"
            )
        most = len(fixed) or min(spec.max_stages, last - first + 1)
        weights = WeightCodec(
            self._scorers(), most, per_stage=spec.per_stage_weights, fixed=spec.fixed_weights
        )
        if not any(weights.usable(name, first) for name in weights.scorers):
            # Only layer 0 can be without a usable scorer.
            first, most = 1, 0 if fixed else min(most, last)
        if most < 1:
            raise ConfigError(
                f"space.layers: received {list(fixed or spec.layers or ())}, but all of "
                f"{', '.join(weights.scorers)} need states of a decoder layer; allow layer 1 or "
                "add another scorer"
            )
        for budget in (self.least, self.most):
            budget.check(budget.least(first, depth, spec.floor))
        schedule = ScheduleCodec(
            depth,
            layers=(first, last),
            stages=(min(spec.min_stages, most), most),
            floor=spec.floor,
            fixed=fixed,
        )
        return weights, schedule

    def _scorers(self) -> "dict[str, type]":
        from prunetune.scorers import SCORERS

        allowed = self.facts.scorers
        names = self.spec.scorers or tuple(name for name in SCORERS if name != "random")
        missing = [name for name in self.spec.scorers if name not in allowed]
        if missing or not any(name in allowed for name in names):
            raise ConfigError(
                f"space.scorers: received {', '.join(missing or names)}, which "
                f"{self.facts.model_type} cannot give; allowed: {', '.join(allowed) or 'none'}"
            )
        return {name: SCORERS.get(name) for name in names if name in allowed}

    def _list_dimensions(self) -> tuple[Dimension, ...]:
        names = {"budget": "the budget, between its bounds"} if self.ranges else {}
        names |= self._schedule.names() | self._weights.names()
        names |= self._restorer.names()
        if len(self.spec.separators) > 1:
            names["separators"] = f"one of: {', '.join(self.spec.separators)}"
        if len(self.spec.positions) > 1:
            names["positions"] = f"one of: {', '.join(self.spec.positions)} (layer 0 only)"
        return tuple(Dimension(name, shown) for name, shown in names.items())

    def dimensions(self) -> tuple[Dimension, ...]:
        """Return the unit parameters in the order they are suggested."""
        return self._dimensions

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
        if not self.ranges:
            return self.least
        return self.least.at(self.least.of(config.stages, self.facts.num_layers))

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

    def holds(self, config: "PruningConfig") -> bool:
        """Tell whether the space has all scorers that a config uses."""
        return all(
            s.name in self._weights.scorers for stage in config.stages for s in stage.scorers
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

        layers, retentions = self._schedule.decode(units, self.budget_at(units.get("budget", 0.5)))
        scorers = self._weights.decode(units, layers)
        restorer = self._restorer.decode(units, retentions[0])
        positions = pick(self.spec.positions, units.get("positions", 0.0))
        return PruningConfig(
            model=self.model_ref(),
            separators=pick(self.spec.separators, units.get("separators", 0.0)),
            positions=positions if layers[0] == 0 else "original",
            stages=tuple(
                Stage(layer=layer, retention=r, scorers=s, restorer=None if k else restorer)
                for k, (layer, r, s) in enumerate(zip(layers, retentions, scorers))
            ),
        )

    def encode(self, config: "PruningConfig") -> dict[str, float]:
        """Return the point that decodes to ``config``, or to the nearest config of this space.

        Parameters that ``config`` leaves open are 0.5.
        """
        from prunetune.space.units import place

        stages, unit = config.stages, self._unit_of(config)
        budget = self.budget_at(unit)
        found = {
            "budget": unit,
            **self._restorer.encode(stages[0]),
            "separators": place(self.spec.separators, config.separators),
            "positions": place(self.spec.positions, config.positions),
            **self._schedule.encode(
                [s.layer for s in stages], [s.retention for s in stages], budget
            ),
            **self._weights.encode(stages[: self.spec.max_stages]),
        }
        return {d.name: found.get(d.name, 0.5) for d in self._dimensions}
