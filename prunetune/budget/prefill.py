"""What comes before the first token: FLOPs of the vision tower and of the language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunetune.budget.costs import ModelFacts, Step, layer_flops, retention_by_layer

if TYPE_CHECKING:
    from prunetune.families.base_towers import Seen, Tower


@dataclass(frozen=True)
class Flops:
    """FLOPs of a prompt up to its first token; a multiply-add is two.

    Attributes:
        tower: Vision tower and projector.
        language: The language model's layers, the causal half of attention.
    """

    tower: float
    language: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.tower + self.language


def tower_flops(tower: "Tower", seen: "Seen") -> float:
    """Return the FLOPs of a vision tower and its projector over what it is given."""
    # Attention's own products are two: scores, and the weighted sum of values.
    attention = 2 * (tower.whole * seen.pairs + tower.within * seen.window_pairs)
    linear = tower.patch * seen.patches + tower.row * seen.rows + tower.token * seen.tokens
    return 2 * (linear + attention)


def prefill_flops(stages: Sequence[Step], facts: ModelFacts) -> Flops | None:
    """Return the FLOPs of a schedule's mean prompt; None where nothing is known of the tower.

    Args:
        stages: Of the config; none: unpruned.
        facts: The model and its mean prompt; of smaller pictures, see ``resized``.
    """
    if facts.tower is None or facts.seen is None:
        return None
    shares = retention_by_layer(stages, facts.num_layers)
    tokens = [share * facts.image_tokens + facts.text_tokens for share in shares]
    language = sum(layer_flops(count, facts) for count in tokens)
    return Flops(tower_flops(facts.tower, facts.seen), language)


def flops_record(
    stages: Sequence[Step], facts: ModelFacts, full: ModelFacts | None = None
) -> dict[str, float] | None:
    """Return a config's FLOPs and the unpruned model's as data; None where they are not known.

    Args:
        stages: Of the config.
        facts: The model and its mean prompt, with pictures as small as the config makes them.
        full: The same with pictures as they are; None: they are.
    """
    now, before = prefill_flops(stages, facts), prefill_flops((), full or facts)
    if now is None or before is None:
        return None
    return {
        f"{prefix}{name}": value
        for prefix, flops in (("", now), ("unpruned_", before))
        for name, value in (
            ("tower", flops.tower),
            ("language_model", flops.language),
            ("sum", flops.total),
        )
    }


def flops_told(record: Mapping[str, float]) -> str:
    """Return what ``flops_record`` says in a line."""
    parts = [
        f"{name} {record[key] / 1e9:.4g} of {record[f'unpruned_{key}'] / 1e9:.4g} GFLOPs"
        for name, key in (("tower", "tower"), ("language model", "language_model"), ("sum", "sum"))
    ]
    share = record["sum"] / record["unpruned_sum"]
    return f"before the first token: {', '.join(parts)} ({100 * share:.1f}%)"


def resized(facts: ModelFacts, image_tokens: float, seen: "Seen") -> ModelFacts:
    """Return what is known of a model whose pictures are sent smaller.

    Args:
        facts: With the pictures as they are.
        image_tokens: Mean image tokens of a prompt with the smaller ones.
        seen: What the tower is given of them, a mean prompt.
    """
    return replace(facts, image_tokens=image_tokens, seen=seen)
