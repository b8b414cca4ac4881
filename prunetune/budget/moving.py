"""How any config is moved onto a budget."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunetune.budget.bounds import FLOOR, Budget, as_budget, short
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.config import PruningConfig, Stage
    from prunetune.restorers import Restorer

_DIGITS = 4
_LAST_DIGITS = 10


def rebudget(
    config: "PruningConfig", keep: float | Budget, num_layers: int, floor: float = FLOOR
) -> tuple["PruningConfig", str]:
    """Move a config onto a budget (a number is a mean retention), leaving its schedule's shape.

    Retentions become ``retention ** p`` (never below ``floor``) with the ``p`` that meets the
    budget; an exit stays one, and is left out where the layers before it cannot take so much. A
    first stage that comes too late to meet the budget is moved to the latest layer that can;
    restorers that would give back a larger part of what is kept than before are weakened.

    Returns:
        The config, and a note that says what else had to change (empty if nothing).

    Raises:
        ConfigError: ``keep`` is out of range, or no layer this config can use meets it.
    """
    budget = as_budget(keep)
    budget.check(budget.least(0, num_layers, floor))
    if config.stages[0].retention:
        stages, notes = _moved(config.stages, budget, num_layers, floor)
        stages, more = _leaving(stages, budget, num_layers)
        notes += more
        retentions = _scaled(stages, budget, num_layers, floor)
    else:
        stages, notes = _earlier_exit(config.stages[0], budget, num_layers)
        retentions = [0.0]
    placed, before = [], 1.0
    for original, stage, retention in zip(config.stages, stages, retentions):
        restorer, note = weakened(stage.restorer, original, retention / before)
        if note:
            notes.append(note)
        placed.append(
            stage.model_copy(update={"retention": retention, "restorer": restorer}, deep=True)
        )
        before = retention
    data = config.model_copy(update={"stages": tuple(placed)}).model_dump(mode="json")
    if placed[0].layer != 0:
        data["positions"] = "original"
    return type(config).model_validate(data), "; ".join(notes)


def _moved(
    stages: "tuple[Stage, ...]", budget: Budget, num_layers: int, floor: float
) -> "tuple[tuple[Stage, ...], list[str]]":
    first = stages[0]
    latest = min(budget.latest_first_layer(num_layers, floor), num_layers - 1)
    if first.layer <= latest:
        return stages, []
    usable = any(scorer.usable_at(latest) for scorer in first.scorers)
    if not usable and first.selector is None:
        names = ", ".join(scorer.name for scorer in first.scorers)
        least = short(budget.least(1, num_layers, floor) * budget.unit)
        raise ConfigError(
            f"{budget.kind}: received {budget.value:g}, which {names} cannot meet: it needs states "
            f"of a decoder layer, so it starts at layer 1, where {least} is the smallest that can "
            "be attained"
        )
    note = f"moved from layer {first.layer} to {latest}"
    return (first.model_copy(update={"layer": latest}), *stages[1:]), [note]


def _leaving(
    stages: "tuple[Stage, ...]", budget: Budget, num_layers: int
) -> "tuple[tuple[Stage, ...], list[str]]":
    """Leave out an exit where even all tokens before it are not what the budget is for."""
    end = _end(stages, num_layers)
    most = end + (num_layers - end) * budget.layer_cost(0.0)
    if end == num_layers or most >= budget.share * num_layers:
        return stages, []
    return stages[:-1], [f"exit at layer {end} left out: the budget is larger than what it leaves"]


def _earlier_exit(
    stage: "Stage", budget: Budget, num_layers: int
) -> "tuple[tuple[Stage, ...], list[str]]":
    """Move a config that only lets all tokens leave to the layer that meets the budget."""
    free = budget.layer_cost(0.0)
    layer = math.floor(num_layers * (budget.share - free) / (1.0 - free) + 1e-9)
    layer = max(1, min(layer, num_layers - 1))
    notes = [f"moved from layer {stage.layer} to {layer}"] if layer != stage.layer else []
    return (stage.model_copy(update={"layer": layer}),), notes


def _end(stages: "tuple[Stage, ...]", num_layers: int) -> int:
    """Return the layer of an exit; the depth where there is none."""
    return num_layers if stages[-1].retention else stages[-1].layer


def _scaled(
    stages: "tuple[Stage, ...]", budget: Budget, num_layers: int, floor: float
) -> list[float]:
    end = _end(stages, num_layers)
    # A retention of 1 would stay 1 at every power.
    shape = [min(stage.retention, 1.0 - 1e-6) for stage in stages if stage.retention]
    spans = _spans([stage.layer for stage in stages if stage.retention], end)
    gone = (num_layers - end) * budget.layer_cost(0.0)
    target = budget.share * num_layers - stages[0].layer - gone

    def at(power: float) -> list[float]:
        return [max(floor, share**power) for share in shape]

    low, high = 0.0, 1.0
    while _cost(at(high), spans, budget) > target and high < 1e12:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        over = _cost(at(middle), spans, budget) > target
        low, high = (middle, high) if over else (low, middle)
    leaves = [0.0] if end < num_layers else []
    return [*rounded(at(high), spans, target, budget), *leaves]


def _spans(layers: Sequence[int], end: int) -> list[int]:
    return [b - a for a, b in zip(layers, [*layers[1:], end])]


def _cost(retentions: Sequence[float], spans: Sequence[int], budget: Budget) -> float:
    return math.fsum(budget.layer_cost(r) * span for r, span in zip(retentions, spans))


def rounded(
    retentions: list[float], spans: Sequence[int], target: float, budget: Budget
) -> list[float]:
    """Round all but the last retention to readable digits; the last one then meets the budget."""
    for digits in (_DIGITS, _LAST_DIGITS, 17):
        head = [round(r, digits) for r in retentions[:-1]]
        last = last_retention((target - _cost(head, spans, budget)) / spans[-1], budget)
        if 0.0 < last <= (head[-1] if head else 1.0):
            return [*head, last]
    # Equal retentions whose remainder is above them by less than the last digit.
    return [*retentions[:-1], min([*retentions[:-1], 1.0])]


def last_retention(layer_cost: float, budget: Budget) -> float:
    """Return the last stage's retention, rounded down: a budget is never exceeded."""
    scale = 10.0**_LAST_DIGITS
    return math.floor(budget.retention(layer_cost) * scale + 1e-3) / scale


def weakened(
    restorer: "Restorer | None", published: "Stage", share: float
) -> "tuple[Restorer | None, str]":
    """Return a restorer that leaves at least half of the kept tokens to the scores.

    The fewer are kept, the larger the part that recovering every n-th dropped token takes, until
    nothing is chosen by score or the budget cannot be met; so ``every`` grows then.

    Args:
        restorer: What the stage has now.
        published: The stage it was published with; a larger part than half is left if it had one.
        share: Retention of the stage over the retention before it.

    Returns:
        The restorer (None where it cannot leave so little), and a note (empty if unchanged).
    """
    if restorer is None:
        return None, ""
    every: Any = getattr(restorer, "every", None)
    if every is None:
        if restorer.least_retention() <= share:
            return restorer, ""
        return None, f"{restorer.name} left out: it cannot leave {short(share)} of the tokens"
    part = max(0.5, min(restored_part(every, published.retention), 1.0))
    if restored_part(every, share) <= part + 1e-9:
        return restorer, ""
    wanted = every_for(part, share)
    data = {**restorer.model_dump(), "every": wanted}
    return type(restorer)(**data), f"{restorer.name} every {every} -> {wanted}"


def restored_part(every: int, share: float) -> float:
    """Return which part of the kept tokens are restored ones when a stage leaves ``share``."""
    return (1.0 - share) / (share * (every - 1))


def every_for(part: float, share: float) -> int:
    """Return the ``every`` at which ``part`` of the kept tokens are restored ones."""
    return max(2, round((1.0 - share) / (share * max(part, 1e-6))) + 1)
