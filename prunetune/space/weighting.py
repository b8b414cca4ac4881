"""Score weights and scorers' hyperparameters from unit parameters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunetune.scorers import Scorer
from prunetune.space.ranges import Values, is_open, searched
from prunetune.space.units import Units, clip, decode_field, encode_field, pick, place

if TYPE_CHECKING:
    from prunetune.config import Stage

WEIGHT_FLOOR = 0.02
"""Score weights below this share of the largest are left out: they change next to no ranking."""

_DIGITS = 3


class WeightCodec:
    """Decodes the scorers of every stage, and back.

    Weights are divided by the largest, which changes no ranking and lets equal configs be seen as
    equal. A scorer that a layer-0 stage cannot give its inputs is left out there.

    Args:
        scorers: Name to class.
        stages: Most stages.
        per_stage: Each stage has its own weights, instead of all sharing one set.
        fixed: All weights are 1, and later stages reuse the first scores.
        ranges: Of a study, see ``space/ranges.py``.
        per_crop: Whether scorers may rank in each view.
        as_of: Version of the spec; from 2 on scorers have the values that `Scorer.searched` names.
    """

    def __init__(
        self,
        scorers: Mapping[str, type[Scorer]],
        stages: int,
        *,
        per_stage: bool,
        fixed: bool = False,
        ranges: Mapping[str, Values] | None = None,
        per_crop: Sequence[bool] = (False,),
        as_of: int = 2,
    ) -> None:
        self.scorers, self.stages, self.per_stage = dict(scorers), stages, per_stage
        self.fixed, self.per_crop = fixed, tuple(per_crop)
        # A study of before goes on with what scorers meant then.
        self.as_of, ranges = as_of, ranges or {}
        self.tunables = {name: searched(scorer, name, ranges) for name, scorer in scorers.items()}
        self._ranks = {
            name
            for name, scorer in scorers.items()
            if scorer.model_fields["per_crop"].annotation is bool
            and f"{name}.per_crop" not in ranges
        }
        self._plain = {name: scorer(name=name) for name, scorer in scorers.items()}

    def names(self) -> dict[str, str]:
        """Return the parameters and what each decides."""
        out: dict[str, str] = {}
        for k in range(0 if self.fixed else self.stages if self.per_stage else 1):
            at = f" at stage {k + 1}" if k else ""
            out |= {self._weight(n, k): f"signed score weight of {n}{at}" for n in self.scorers}
        for name, fields in self.tunables.items():
            out |= {f"{name}.{f}": t.shown or f for f, t in fields.items() if is_open(t)}
        if len(self.per_crop) > 1 and self._ranks:
            out["per_crop"] = "scorers rank over the whole image, or in each view (above 0.5)"
        if self.stages > 1 and not self.per_stage and not self.fixed:
            out["rescore"] = "later stages reuse the first scores, or score again (above 0.5)"
        return out

    def decode(self, units: Mapping[str, float], layers: Sequence[int]) -> list[tuple[Scorer, ...]]:
        """Return the scorers of each stage; empty where the scores before are reused."""
        count = len(layers) if self.per_stage or units.get("rescore", 0.0) >= 0.5 else 1
        built = self._built(units)
        out: list[tuple[Scorer, ...]] = [()] * len(layers)
        for k in range(count):
            raw = self._raw(units, k if self.per_stage else 0)
            scale_layer = layers[k] if self.per_stage else layers[count - 1]
            weights = self._at(layers[k], self._shared(raw, scale_layer), raw if k == 0 else {})
            out[k] = tuple(
                built[name].model_copy(update={"weight": weight})
                for name, weight in weights.items()
            )
        return out

    def encode(self, stages: "Sequence[Stage]") -> Units:
        """Return the point that decodes to the stages' scorers; unknown scorers are ignored."""
        units = Units()
        for stage in reversed(stages):
            for scorer in stage.scorers:
                for field, t in self.tunables.get(scorer.name, {}).items():
                    units[f"{scorer.name}.{field}"] = encode_field(t, getattr(scorer, field))
        ranking = {s.per_crop for stage in stages for s in stage.scorers if s.name in self._ranks}
        units["per_crop"] = place(self.per_crop, True in ranking)
        if self.per_stage:
            for k, stage in enumerate(stages):
                self._set(units, {s.name: s.weight for s in stage.scorers}, k)
            return units
        scored = [stage for stage in stages if stage.scorers]
        if not scored:
            return units
        weights = {s.name: s.weight for s in scored[-1].scorers}
        for scorer in scored[0].scorers:
            # Only the layer-0 stage had use for it: too light to show at the others.
            weights.setdefault(scorer.name, scorer.weight * WEIGHT_FLOOR / 2)
        self._set(units, weights, 0)
        units["rescore"] = 0.75 if len(scored) > 1 else 0.25
        return units

    def _set(self, units: Units, weights: Mapping[str, float], k: int) -> None:
        for name in self.scorers:
            units[self._weight(name, k)] = clip((weights.get(name, 0.0) + 1.0) / 2.0)

    def _weight(self, name: str, k: int) -> str:
        return f"weight.{name}@{k + 1}" if k else f"weight.{name}"

    def _raw(self, units: Mapping[str, float], k: int) -> dict[str, float]:
        if self.fixed:
            return dict.fromkeys(self.scorers, 1.0)
        return {name: 2.0 * clip(units[self._weight(name, k)]) - 1.0 for name in self.scorers}

    def _shared(self, raw: Mapping[str, float], layer: int) -> dict[str, float]:
        usable = {name: w for name, w in raw.items() if self.usable(name, layer)}
        scale = max((abs(w) for w in usable.values()), default=0.0)
        if scale < 1e-9:
            return {}
        return {
            name: round(w / scale, _DIGITS)
            for name, w in usable.items()
            if abs(w) >= WEIGHT_FLOOR * scale
        }

    def _at(
        self, layer: int, shared: Mapping[str, float], otherwise: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the weights usable at a layer; the heaviest of ``otherwise`` if there is none."""
        usable = {name: w for name, w in shared.items() if self.usable(name, layer)}
        if usable:
            scale = max(abs(w) for w in usable.values())
            return {name: round(w / scale, _DIGITS) for name, w in usable.items()}
        spare = {name: w for name, w in otherwise.items() if self.usable(name, layer)}
        if not spare:
            return {}
        heaviest = max(spare, key=lambda name: abs(spare[name]))
        return {heaviest: -1.0 if spare[heaviest] < 0 else 1.0}

    def _built(self, units: Mapping[str, float]) -> dict[str, Scorer]:
        in_views = pick(self.per_crop, units.get("per_crop", 0.0))
        built: dict[str, Scorer] = {}
        for name, fields in self.tunables.items():
            given: dict[str, Any] = dict(self.scorers[name].searched) if self.as_of > 1 else {}
            if name in self._ranks:
                given["per_crop"] = in_views
            for field, t in fields.items():
                unit = units.get(f"{name}.{field}", 0.5)
                given[field] = decode_field(t, unit, whole=self._whole(name, field))
            built[name] = self.scorers[name](name=name, **given)
        return built

    def added(
        self, scorers: tuple[Scorer, ...], names: Sequence[str], units: Mapping[str, float]
    ) -> tuple[Scorer, ...]:
        """Return a stage's scorers with those of ``names`` that it lacks, without weight."""
        missing = [name for name in names if name not in {s.name for s in scorers}]
        built = self._built(units) if missing else {}
        more = (built[name].model_copy(update={"weight": 0.0}) for name in missing)
        return (*scorers, *more)

    def usable(self, name: str, layer: int) -> bool:
        """Tell whether a stage at ``layer`` can give a scorer its inputs."""
        return self._plain[name].usable_at(layer)

    def _whole(self, name: str, field: str) -> bool:
        return self.scorers[name].model_fields[field].annotation is int
