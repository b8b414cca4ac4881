"""Layers and retentions from unit parameters, by stick-breaking: the budget is always met."""

import math
from collections.abc import Mapping, Sequence

from prunetune.budget import Budget
from prunetune.budget.moving import last_retention
from prunetune.space.ranges import Box
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
        box: Bounds of retentions, kept where the budget allows it.
        exits: Whether all image tokens may leave at a late layer.
    """

    def __init__(
        self,
        num_layers: int,
        *,
        layers: tuple[int, int],
        stages: tuple[int, int],
        floor: float,
        fixed: Sequence[int] = (),
        box: Box | None = None,
        exits: bool = False,
    ) -> None:
        self.box, self.exits = box or Box(), exits
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
        if self.exits:
            out["exit"] = "all image tokens leave at a late layer (above 0.5), and at which"
        return out | {
            f"keep_{k - 1}": f"retention of stage {k - 1}, among those left" for k in later
        }

    def decode(self, units: Mapping[str, float], budget: Budget) -> tuple[list[int], list[float]]:
        """Return the stages' layers and retentions, within a budget and next to no below it."""
        count, layers = pick(self.counts, units.get("stages", 0.0)), list[int]()
        end = self.end(units, budget)
        for k in range(count):
            unit = 0.0 if self.fixed else units[f"layer_{k + 1}"]
            layers.append(pick(self._choices(k, count, layers, budget, end), unit))
        spans, left = self._spans(layers, end), self._room(budget, end) - layers[0]
        chosen: list[float] = []
        for k in range(count - 1):
            low, high = self._range(spans[k:], left, chosen, budget)
            part = between(low, high, units[f"keep_{k + 1}"])
            # Where all is at the floor, the range is a rounding error above what was chosen.
            chosen.append(min(part, chosen[-1] if chosen else 1.0))
            left -= budget.layer_cost(chosen[-1]) * spans[k]
        last = last_retention(left / spans[-1], budget)
        return layers, [*chosen, min(last, chosen[-1] if chosen else 1.0)]

    def end(self, units: Mapping[str, float], budget: Budget) -> int:
        """Return the layer from which on no image token is left; the depth if they stay."""
        unit = units.get("exit", 0.0)
        if not self.exits or unit <= 0.5:
            return self.num_layers
        ends = self._ends(pick(self.counts, units.get("stages", 0.0)), budget)
        return pick(ends, 2.0 * unit - 1.0) if ends else self.num_layers

    def encode(
        self,
        layers: Sequence[int],
        retentions: Sequence[float],
        budget: Budget,
        end: int | None = None,
    ) -> Units:
        """Return the point that decodes to a schedule, or to the nearest one.

        ``end`` is the layer of its exit.
        """
        count = min(max(len(layers), self.counts[0]), self.counts[-1])
        units = {"stages": place(self.counts, count), "exit": 0.25}
        if end is not None and (ends := self._ends(count, budget)):
            units["exit"] = 0.5 + 0.5 * place(ends, min(max(end, ends[0]), ends[-1]))
        end = self.end(units, budget)
        used: list[int] = []
        for k, layer in enumerate(layers[:count]):
            choices = self._choices(k, count, used, budget, end)
            used.append(min(max(layer, choices[0]), choices[-1]))
            units[f"layer_{k + 1}"] = place(choices, used[-1])
        spans, left = self._spans(used, end), self._room(budget, end) - used[0]
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

    def _room(self, budget: Budget, end: int) -> float:
        """Return what the layers before an exit may cost."""
        return budget.share * self.num_layers - (self.num_layers - end) * budget.layer_cost(0.0)

    def _ends(self, count: int, budget: Budget) -> range:
        """Return the layers at which image tokens may leave without room being left over."""
        after = self.fixed[-1] if self.fixed else self.first + count - 1
        # Before it a layer costs at most 1: what is to be spent has to fit.
        free = budget.layer_cost(0.0)
        full = self.num_layers * (budget.share - free) / (1.0 - free)
        least = max(after + 1, -(-2 * self.num_layers // 3), math.ceil(full - 1e-9))
        return range(least, self.num_layers)

    def _choices(
        self, k: int, count: int, before: Sequence[int], budget: Budget, end: int
    ) -> range:
        if self.fixed:
            return range(self.fixed[k], self.fixed[k] + 1)
        last = min(self.last, end - 1) - (count - 1 - k)
        if k:
            return range(before[-1] + 1, last + 1)
        least = budget.layer_cost(self.floor)
        latest = math.floor((self._room(budget, end) - end * least) / (1.0 - least) + 1e-9)
        if end == self.num_layers:
            latest = self.latest(budget)
        return range(self.first, min(latest, last) + 1)

    def _spans(self, layers: Sequence[int], end: int) -> list[int]:
        return [b - a for a, b in zip(layers, [*layers[1:], end])]

    def _range(
        self, spans: Sequence[int], left: float, chosen: Sequence[float], budget: Budget
    ) -> tuple[float, float]:
        """Return the least and the largest retention of the first of the stages still open."""
        rest = budget.layer_cost(self.floor) * sum(spans[1:])
        low = max(self.floor, budget.retention(left / sum(spans)))
        high = min(chosen[-1] if chosen else 1.0, budget.retention((left - rest) / spans[0]))
        before = chosen[-1] if chosen else 1.0
        return self.box.within(len(chosen) + 1, low, max(low, high), before)
