"""The search space: flat unit parameters, decoded so that every suggestion meets the budget.

Every parameter is a float in [0, 1] that is always suggested: samplers then see one fixed space
(conditional or moving ranges drop out of the joint model), and any of them can be used.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunetune.budget import (
    ModelFacts,
    check_keep,
    every_for,
    latest_first_layer,
    least_keep,
    restored_part,
)
from prunetune.errors import ConfigError
from prunetune.search.spec import SpaceSpec

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from prunetune.config import ModelRef, PruningConfig, Stage
    from prunetune.registry import Tunable
    from prunetune.restorers import Restorer
    from prunetune.search.schedule import ScheduleCodec
    from prunetune.search.weighting import WeightCodec

# Recovering every n-th token: from half of the kept tokens down to a sixteenth of them.
_MOST_RESTORED, _RESTORED_RANGE = 0.5, 8.0
# The end of a choice's part of [0, 1] belongs to the next choice.
_INSIDE = 1.0 - 1e-6


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
        keep: Budget.
        facts: The model.

    Raises:
        ConfigError: No schedule of this space meets the budget (the message names the smallest
            that can be attained), or no scorer is left to search with.
    """

    def __init__(self, spec: SpaceSpec, keep: float, facts: ModelFacts) -> None:
        self.spec, self.keep, self.facts = spec, keep, facts
        self._weights, self._schedule = self._codecs()
        self._dimensions = self._list_dimensions()

    def _codecs(self) -> "tuple[WeightCodec, ScheduleCodec]":
        from prunetune.search.schedule import ScheduleCodec
        from prunetune.search.weighting import WeightCodec

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
        check_keep(self.keep, least_keep(first, depth, spec.floor))
        schedule = ScheduleCodec(
            self.keep,
            depth,
            layers=(first, last),
            latest=latest_first_layer(self.keep, depth, spec.floor),
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
        names = self._schedule.names() | self._weights.names()
        names |= self._restorer_names()
        if len(self.spec.separators) > 1:
            names["separators"] = f"one of: {', '.join(self.spec.separators)}"
        if len(self.spec.positions) > 1:
            names["positions"] = f"one of: {', '.join(self.spec.positions)} (layer 0 only)"
        return tuple(Dimension(name, shown) for name, shown in names.items())

    def _restorer_names(self) -> dict[str, str]:
        kinds = self._restorers()
        names: dict[str, str] = {}
        if len(self.spec.restorers) > 1 or any("every" in k.model_fields for k in kinds.values()):
            names["restorer"] = (
                f"one of: {', '.join(self.spec.restorers)}; and how much it gives back"
            )
        for name, kind in kinds.items():
            names |= {f"{name}.{f}": t.shown or f for f, t in _tunables(kind).items()}
        return names

    def _restorers(self) -> "dict[str, type[Restorer]]":
        from prunetune.restorers import RESTORERS

        return {name: RESTORERS.get(name) for name in self.spec.restorers if name != "none"}

    def dimensions(self) -> tuple[Dimension, ...]:
        """Return the unit parameters in the order they are suggested."""
        return self._dimensions

    @property
    def latest_first(self) -> int:
        """Last layer at which a first stage can be and meet the budget."""
        return self._schedule.latest

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
        """Return the config of a point; its mean retention is the budget to 1e-9."""
        from prunetune.config import PruningConfig, Stage
        from prunetune.search.units import pick

        layers, retentions = self._schedule.decode(units)
        scorers = self._weights.decode(units, layers)
        restorer = self._decode_restorer(units, retentions[0])
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
        from prunetune.search.units import place

        stages = config.stages
        found = {
            **self._encode_restorer(stages[0]),
            "separators": place(self.spec.separators, config.separators),
            "positions": place(self.spec.positions, config.positions),
            **self._schedule.encode([s.layer for s in stages], [s.retention for s in stages]),
            **self._weights.encode(stages[: self.spec.max_stages]),
        }
        return {d.name: found.get(d.name, 0.5) for d in self._dimensions}

    # One parameter holds the restorer and, inside its part, how much is recovered; ranges that a
    # restorer declares have parameters of their own. Only the first stage restores: later ones
    # drop what is left of its choice.

    def _decode_restorer(self, units: Mapping[str, float], share: float) -> "Restorer | None":
        from prunetune.search.units import decode_field

        unit, names = units.get("restorer", 0.0), self.spec.restorers
        index = min(int(unit * len(names)), len(names) - 1)
        name = names[index]
        if name == "none":
            return None
        kind = self._restorers()[name]
        data: dict[str, Any] = {
            field: decode_field(
                t, units[f"{name}.{field}"], whole=kind.model_fields[field].annotation is int
            )
            for field, t in _tunables(kind).items()
        }
        if "every" in kind.model_fields:
            part = _MOST_RESTORED * _RESTORED_RANGE ** -min(unit * len(names) - index, _INSIDE)
            data["every"] = every_for(part, share)
        restorer = kind(name=name, **data)
        return restorer if restorer.least_retention() <= share else None

    def _encode_restorer(self, stage: "Stage") -> dict[str, float]:
        from prunetune.search.units import encode_field

        names, restorer = self.spec.restorers, stage.restorer
        name = restorer.name if restorer else "none"
        if name not in names:
            return {"restorer": 0.5 / len(names)}
        inside, every = 0.5, getattr(restorer, "every", None)
        if every is not None and stage.retention < 1.0:
            part = restored_part(every, stage.retention)
            inside = math.log(_MOST_RESTORED / part) / math.log(_RESTORED_RANGE)
        found = {"restorer": (names.index(name) + min(max(inside, 0.0), _INSIDE)) / len(names)}
        if restorer is not None:
            for field, t in _tunables(type(restorer)).items():
                found[f"{name}.{field}"] = encode_field(t, getattr(restorer, field))
        return found


def _tunables(kind: "type[Restorer]") -> "dict[str, Tunable]":
    from prunetune.search.weighting import tunables

    return tunables(kind)
