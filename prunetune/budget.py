"""What a schedule costs, and how any config is moved onto a budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.config import PruningConfig, Stage
    from prunetune.restorers import Restorer

FLOOR = 0.01
"""Smallest retention that a schedule is moved to unless told otherwise."""

_DIGITS = 4
_LAST_DIGITS = 10


class _Step(Protocol):
    @property
    def layer(self) -> int: ...
    @property
    def retention(self) -> float: ...


@dataclass(frozen=True)
class ModelFacts:
    """What search, budget and provenance need to know about a model and its calibration data.

    Attributes:
        model_type: The transformers ``model_type``.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Inner width of the gated MLP.
        num_heads: Query heads.
        num_kv_heads: Key and value heads (fewer under grouped-query attention).
        head_dim: Width of a head.
        image_tokens: Mean image tokens of a calibration prompt, separators included.
        text_tokens: Mean other tokens of a calibration prompt.
        separator_share: Share of the image tokens that are separators.
        scorers: Names of the scorers whose inputs this model can give.
        name: Hub id, alias or folder.
        revision: Hub revision, where known.
        fingerprint: sha256 of the architecture-defining config fields.
        calibration_digest: Digest over the calibration pixels and texts.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    image_tokens: float
    text_tokens: float
    separator_share: float = 0.0
    scorers: tuple[str, ...] = ()
    name: str = ""
    revision: str | None = None
    fingerprint: str | None = None
    calibration_digest: str | None = None


def retention_by_layer(stages: Sequence[_Step], num_layers: int) -> list[float]:
    """Return the share of image tokens that each decoder layer computes on, ``num_layers`` long."""
    shares = [1.0] * num_layers
    for stage in stages:
        for layer in range(stage.layer, num_layers):
            shares[layer] = stage.retention
    return shares


def mean_retention(stages: Sequence[_Step], num_layers: int) -> float:
    """Return the mean retention over all decoder layers: 1.0 before the first stage's layer."""
    return math.fsum(retention_by_layer(stages, num_layers)) / num_layers


def kv_ratio(stages: Sequence[_Step], num_layers: int) -> float:
    """Return the visual KV-cache share, pruned over unpruned: the mean retention, by definition."""
    return mean_retention(stages, num_layers)


def flops_ratio(stages: Sequence[_Step], facts: ModelFacts) -> float:
    """Return the language model's prefill FLOPs, pruned over unpruned, at the mean prompt."""
    pruned = sum(
        _layer_flops(share * facts.image_tokens + facts.text_tokens, facts)
        for share in retention_by_layer(stages, facts.num_layers)
    )
    full = _layer_flops(facts.image_tokens + facts.text_tokens, facts) * facts.num_layers
    return pruned / full


def _layer_flops(tokens: float, facts: ModelFacts) -> float:
    queries = facts.num_heads * facts.head_dim
    keys = facts.num_kv_heads * facts.head_dim
    weights = facts.hidden_size * (2 * queries + 2 * keys + 3 * facts.intermediate_size)
    # Scores and weighted values: two products over the causal half of tokens x tokens.
    attention = 2 * queries * tokens * (tokens + 1) / 2
    return 2 * (weights * tokens + attention)


def least_keep(first_layer: int, num_layers: int, floor: float = FLOOR) -> float:
    """Return the smallest mean retention of schedules whose first stage is at ``first_layer``."""
    return (first_layer + (num_layers - first_layer) * floor) / num_layers


def latest_first_layer(keep: float, num_layers: int, floor: float = FLOOR) -> int:
    """Return the last layer at which a first stage can still meet ``keep``; -1 if none can."""
    return (
        math.floor(num_layers * (keep - floor) / (1.0 - floor) + 1e-9) if keep < 1 else num_layers
    )


def check_keep(keep: float, least: float = FLOOR) -> float:
    """Return ``keep`` as it came.

    Raises:
        ConfigError: It is not a number in ``[least, 1]``; the message names ``least``.
    """
    if not (isinstance(keep, (int, float)) and math.isfinite(keep) and least - 1e-12 <= keep <= 1):
        raise ConfigError(
            f"keep: received {keep}, allowed {_short(least)} to 1: the mean share of image tokens "
            f"over all decoder layers; the smallest that can be attained is {_short(least)}"
        )
    return keep


def rebudget(
    config: "PruningConfig", keep: float, num_layers: int, floor: float = FLOOR
) -> tuple["PruningConfig", str]:
    """Move a config onto a mean retention of ``keep``, leaving its schedule's shape.

    Retentions become ``retention ** p`` (never below ``floor``) with the ``p`` that meets the
    budget. A first stage that comes too late to meet it is moved to the latest layer that can;
    restorers that would give back a larger part of what is kept than before are weakened.

    Returns:
        The config, and a note that says what else had to change (empty if nothing).

    Raises:
        ConfigError: ``keep`` is out of range, or no layer this config can use meets it.
    """
    check_keep(keep, floor)
    stages, notes = _moved(config.stages, keep, num_layers, floor)
    retentions = _scaled(stages, keep, num_layers, floor)
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
    stages: "tuple[Stage, ...]", keep: float, num_layers: int, floor: float
) -> "tuple[tuple[Stage, ...], list[str]]":
    first = stages[0]
    latest = min(latest_first_layer(keep, num_layers, floor), num_layers - 1)
    if first.layer <= latest:
        return stages, []
    if not any(scorer.usable_at(latest) for scorer in first.scorers):
        names = ", ".join(scorer.name for scorer in first.scorers)
        raise ConfigError(
            f"keep: received {keep:g}, which {names} cannot meet: it needs states of a decoder "
            f"layer, so it starts at layer 1, where {_short(least_keep(1, num_layers, floor))} is "
            "the smallest that can be attained"
        )
    note = f"moved from layer {first.layer} to {latest}"
    return (first.model_copy(update={"layer": latest}), *stages[1:]), [note]


def _scaled(stages: "tuple[Stage, ...]", keep: float, num_layers: int, floor: float) -> list[float]:
    # A retention of 1 would stay 1 at every power.
    shape = [min(stage.retention, 1.0 - 1e-6) for stage in stages]
    spans = _spans([stage.layer for stage in stages], num_layers)
    target = keep * num_layers - stages[0].layer

    def at(power: float) -> list[float]:
        return [max(floor, share**power) for share in shape]

    low, high = 0.0, 1.0
    while _cost(at(high), spans) > target and high < 1e12:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(at(middle), spans) > target else (low, middle)
    return rounded(at(high), spans, target)


def _spans(layers: Sequence[int], num_layers: int) -> list[int]:
    return [b - a for a, b in zip(layers, [*layers[1:], num_layers])]


def _cost(retentions: Sequence[float], spans: Sequence[int]) -> float:
    return math.fsum(r * span for r, span in zip(retentions, spans))


def rounded(retentions: list[float], spans: Sequence[int], target: float) -> list[float]:
    """Round all but the last retention to readable digits; the last one then meets the budget."""
    for digits in (_DIGITS, _LAST_DIGITS, 17):
        head = [round(r, digits) for r in retentions[:-1]]
        last = round((target - _cost(head, spans)) / spans[-1], _LAST_DIGITS)
        if 0.0 < last <= (head[-1] if head else 1.0):
            return [*head, last]
    # Equal retentions whose remainder is above them by less than the last digit.
    return [*retentions[:-1], min([*retentions[:-1], 1.0])]


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
        return None, f"{restorer.name} left out: it cannot leave {_short(share)} of the tokens"
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


def _short(value: float) -> str:
    return f"{math.ceil(value * 1e4 - 1e-9) / 1e4:g}"
