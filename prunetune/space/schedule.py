"""Layers and retentions from unit parameters, by stick-breaking: the budget is always met."""

from collections.abc import Mapping, Sequence

from prunetune.budget import Budget
from prunetune.budget.moving import last_retention
from prunetune.space.units import Units, between, fraction, pick, place


class ScheduleCodec:
    """Decodes schedules that meet a budget exactly, and back.

    Each stage's retention is chosen between what spends the rest of the budget evenly and what
    leaves the floor to the stages after it; the last stage gets the rest. What is spent are layer
    costs (``Budget``), which for mean retention are the retentions themselves.

    Args:
        num_layers: Decoder layers.
        layers: First and last layer a stage may have.
        stages: Fewest and most stages.
        floor: Smallest retention.
        fixed: Layer of every stage, where only retentions are open.
    """

    def __init__(
        self,
        num_layers: int,
        *,
        layers: tuple[int, int],
        stages: tuple[int, int],
        floor: float,
        fixed: Sequence[int] = (),
    ) -> None:
        self.num_layers, self.floor = num_layers, floor
        self.first, self.last = layers
        self.fixed = tuple(fixed)
        self.counts = range(stages[0], stages[1] + 1)
        if fixed:
            self.counts = range(len(fixed), len(fixed) + 1)

    def names(self) -> dict[str, str]:
        """Return the parameters and what each decides."""
        later = range(2, self.counts[-1] + 1)
        out = {"stages": "number of stages"} if len(self.counts) > 1 else {}
        if not self.fixed:
            out["layer_1"] = "layer of the first stage, among those that can meet the budget"
            out |= {f"layer_{k}": f"layer of stage {k}, among those left" for k in later}
        return out | {
            f"keep_{k - 1}": f"retention of stage {k - 1}, among those left" for k in later
        }

    def decode(self, units: Mapping[str, float], budget: Budget) -> tuple[list[int], list[float]]:
        """Return the stages' layers and retentions, within a budget and next to no below it."""
        count, layers = pick(self.counts, units.get("stages", 0.0)), list[int]()
        for k in range(count):
            unit = 0.0 if self.fixed else units[f"layer_{k + 1}"]
            layers.append(pick(self._choices(k, count, layers, budget), unit))
        spans, left = self._spans(layers), budget.share * self.num_layers - layers[0]
        chosen: list[float] = []
        for k in range(count - 1):
            low, high = self._range(spans[k:], left, chosen, budget)
            chosen.append(between(low, high, units[f"keep_{k + 1}"]))
            left -= budget.layer_cost(chosen[-1]) * spans[k]
        last = last_retention(left / spans[-1], budget)
        return layers, [*chosen, min(last, chosen[-1] if chosen else 1.0)]

    def encode(self, layers: Sequence[int], retentions: Sequence[float], budget: Budget) -> Units:
        """Return the point that decodes to a schedule, or to the nearest one."""
        count = min(max(len(layers), self.counts[0]), self.counts[-1])
        units = {"stages": place(self.counts, count)}
        used: list[int] = []
        for k, layer in enumerate(layers[:count]):
            choices = self._choices(k, count, used, budget)
            used.append(min(max(layer, choices[0]), choices[-1]))
            units[f"layer_{k + 1}"] = place(choices, used[-1])
        spans, left = self._spans(used), budget.share * self.num_layers - used[0]
        chosen: list[float] = []
        for k, retention in enumerate(retentions[: len(used) - 1]):
            low, high = self._range(spans[k:], left, chosen, budget)
            units[f"keep_{k + 1}"] = fraction(low, high, retention)
            chosen.append(between(low, high, units[f"keep_{k + 1}"]))
            left -= budget.layer_cost(chosen[-1]) * spans[k]
        return units

    def latest(self, budget: Budget) -> int:
        """Return the last layer at which a first stage can be and meet a budget."""
        return budget.latest_first_layer(self.num_layers, self.floor)

    def _choices(self, k: int, count: int, before: Sequence[int], budget: Budget) -> range:
        if self.fixed:
            return range(self.fixed[k], self.fixed[k] + 1)
        end = self.last - (count - 1 - k)
        if k:
            return range(before[-1] + 1, end + 1)
        return range(self.first, min(self.latest(budget), end) + 1)

    def _spans(self, layers: Sequence[int]) -> list[int]:
        return [b - a for a, b in zip(layers, [*layers[1:], self.num_layers])]

    def _range(
        self, spans: Sequence[int], left: float, chosen: Sequence[float], budget: Budget
    ) -> tuple[float, float]:
        """Return the least and the largest retention of the first of the stages still open."""
        rest = budget.layer_cost(self.floor) * sum(spans[1:])
        low = max(self.floor, budget.retention(left / sum(spans)))
        high = min(chosen[-1] if chosen else 1.0, budget.retention((left - rest) / spans[0]))
        return low, max(low, high)
