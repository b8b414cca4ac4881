"""Budgets: bounds on mean retention, on the prefill's FLOPs or on the visual KV cache's bytes.

All three bound the mean over the decoder layers of what a layer costs, as a share of what it costs
unpruned. A layer's cost is a polynomial of its retention: the retention itself for the KV cache, a
quadratic one for FLOPs (attention). It rises, so it can be inverted, and schedules that meet any
budget are found in the same way: see ``space/schedule.py``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from prunetune.budget.costs import ModelFacts, Step, flops_terms, retention_by_layer
from prunetune.errors import ConfigError

FLOOR = 0.01
"""Smallest retention that a schedule is moved to unless told otherwise."""

Kind = Literal["keep", "flops", "kv_mib"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MEANING = {
    "keep": "the mean share of image tokens over all decoder layers",
    "flops": "the share of the unpruned prefill's FLOPs in the language model",
    "kv_mib": "MiB of the image tokens' keys and values of an average calibration sample",
}
# Where it stands for a whole: float noise of a sum over layers.
_NOISE = 1e-12


@dataclass(frozen=True)
class Budget:
    """A bound that every config of a search meets.

    A layer of retention ``r`` costs ``quadratic * r**2 + linear * r`` and the rest of 1 of what it
    costs unpruned.

    Attributes:
        kind: What is bounded.
        share: The bound, as a share of the unpruned model's cost.
        unit: What the unpruned model costs, in the unit that people give a budget of this kind in.
        quadratic: See above.
        linear: See above.
    """

    kind: Kind
    share: float
    unit: float = 1.0
    quadratic: float = 0.0
    linear: float = 1.0

    @property
    def value(self) -> float:
        """The bound as people give it."""
        return self.share * self.unit

    @property
    def exact(self) -> dict[str, float]:
        """The bound as data: kind to value."""
        return {self.kind: float(f"{self.value:.10g}")}

    def at(self, share: float) -> "Budget":
        """Return a budget of the same kind at another share."""
        return replace(self, share=share)

    def of_smaller(self, tokens: float) -> "Budget":
        """Return the same bound as a share of what smaller pictures cost, unpruned.

        At a share of 1 or more they meet it without pruning.

        Args:
            tokens: Share of the full pictures' image tokens that is left of the smaller ones.
        """
        cost = self.layer_cost(tokens)
        return replace(
            self,
            share=self.share / cost,
            unit=self.unit * cost,
            quadratic=self.quadratic * tokens * tokens / cost,
            linear=self.linear * tokens / cost,
        )

    def layer_cost(self, retention: float) -> float:
        """Return a layer's cost as a share of its unpruned cost."""
        fixed = 1.0 - self.linear - self.quadratic
        return self.quadratic * retention * retention + self.linear * retention + fixed

    def retention(self, layer_cost: float) -> float:
        """Return the retention of a layer that may cost ``layer_cost``, at least 0."""
        rest = max(0.0, layer_cost - (1.0 - self.linear - self.quadratic))
        # The root in the form that stays exact where there is no quadratic term.
        root = math.sqrt(self.linear * self.linear + 4.0 * self.quadratic * rest)
        return 2.0 * rest / (self.linear + root)

    def of(self, stages: Sequence[Step], num_layers: int) -> float:
        """Return what a schedule costs as a share of the unpruned model."""
        shares = retention_by_layer(stages, num_layers)
        return math.fsum(self.layer_cost(share) for share in shares) / num_layers

    def least(self, first_layer: int, num_layers: int, floor: float = FLOOR) -> float:
        """Return the smallest share that schedules with a first stage there can attain."""
        pruned = num_layers - first_layer
        return (first_layer + pruned * self.layer_cost(floor)) / num_layers

    def latest_first_layer(self, num_layers: int, floor: float = FLOOR) -> int:
        """Return the last layer at which a first stage can still meet the budget; -1 if none."""
        if self.share >= 1:
            return num_layers
        least = self.layer_cost(floor)
        return math.floor(num_layers * (self.share - least) / (1.0 - least) + 1e-9)

    def check(self, least: float) -> "Budget":
        """Return the budget itself.

        Args:
            least: Smallest share that can be attained.

        Raises:
            ConfigError: It is not a number from ``least`` to 1; the message names the smallest
                value that can be attained.
        """
        share = self.share
        if not (_is_number(share) and least - _NOISE <= share <= 1):
            raise ConfigError(self._refusal(least))
        return self

    def _per_cent(self) -> str:
        given = self.kind != "kv_mib" and _is_number(self.share) and 1 < self.share <= 100
        return f"; for {self.share:g}% write {self.share / 100:.6g}" if given else ""

    def _refusal(self, least: float) -> str:
        low, high = short(least * self.unit), f"{math.floor(self.unit * 1e4 + 1e-9) / 1e4:g}"
        value = f"{self.value:.6g}" if self.kind != "keep" else f"{self.share}"
        return (
            f"{self.kind}: received {value}, allowed {low} to {high}: {_MEANING[self.kind]}; "
            f"the smallest that can be attained is {low}{self._per_cent()}"
        )


def make_budget(kind: Kind, value: float, facts: ModelFacts) -> Budget:
    """Return a budget of a model, from what people give.

    Args:
        kind: What is bounded.
        value: Mean retention, share of the unpruned prefill's FLOPs, or MiB.
        facts: The model, and the mean prompt of the calibration data.
    """
    if kind == "keep":
        return Budget("keep", value)
    if kind == "kv_mib":
        return Budget("kv_mib", value / facts.kv_mib, facts.kv_mib)
    (weights, queries), image, text = flops_terms(facts), facts.image_tokens, facts.text_tokens
    # weights * t + queries * t * (t + 1), at t = image * r + text.
    square = queries * image * image
    line = (weights + queries * (2 * text + 1)) * image
    fixed = weights * text + queries * text * (text + 1)
    total = square + line + fixed
    return Budget("flops", value, 1.0, square / total, line / total)


def as_budget(bound: float | Budget) -> Budget:
    """Return a mean retention as a budget; a budget stays as it is."""
    return bound if isinstance(bound, Budget) else Budget("keep", bound)


def least_keep(first_layer: int, num_layers: int, floor: float = FLOOR) -> float:
    """Return the smallest mean retention of schedules whose first stage is at ``first_layer``."""
    return Budget("keep", 1.0).least(first_layer, num_layers, floor)


def latest_first_layer(keep: float, num_layers: int, floor: float = FLOOR) -> int:
    """Return the last layer at which a first stage can still meet ``keep``; -1 if none can."""
    return Budget("keep", keep).latest_first_layer(num_layers, floor)


def check_keep(keep: float, least: float = FLOOR) -> float:
    """Return ``keep`` as it came.

    Raises:
        ConfigError: It is not a number in ``[least, 1]``; the message names ``least``.
    """
    return Budget("keep", keep).check(least).share


def short(value: float) -> str:
    """Return a smallest value in four digits, rounded up, so that it can itself be attained."""
    digits = 4 if value >= 1e-3 or value <= 0 else 3 - math.floor(math.log10(value))
    scale = 10.0**digits
    return f"{math.ceil(value * scale - 1e-9) / scale:.10g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
