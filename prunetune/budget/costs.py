"""What a schedule costs on a model: retention, prefill FLOPs, bytes of the visual KV cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prunetune.budget.levels import Level
    from prunetune.families import Family
    from prunetune.families.base_towers import Seen, Tower

_MIB = 1 << 20


class Step(Protocol):
    """A stage, as far as its cost is concerned."""

    @property
    def layer(self) -> int: ...  # noqa: D102
    @property
    def retention(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class ModelFacts:
    """What search, budget and provenance need to know about a model and its calibration data.

    Attributes:
        model_type: The transformers ``model_type``.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Inner width of the gated MLP; of experts, of those that a token passes.
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
        calibration_order: The same in the samples' order.
        weights_digest: See ``prunetune.models.fingerprint``.
        levels: Of pixels, that a search may choose, beside the full picture.
        value_bytes: Bytes of a number in the KV cache.
        tower: What the vision tower multiplies; None where nothing is known of it.
        seen: What it is given of a mean prompt; None where that is not known.
        last_stage: The last layer at which tokens can be dropped; None: any.
        attending: Share of the decoder layers that attend to keys; others carry a state.
        weights: Weights that a token passes in a mean layer; 0: what the widths say.
        kept_width: Numbers that the cache keeps of a token in a layer; 0: what the heads say.
        holding: Share of the decoder layers that keep keys, in widths of a mean one; None:
            ``attending``.
        limit: Why no tokens can be dropped behind ``last_stage``; see ``Layered.limit``.
        states: Whether some layers carry a state.
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
    calibration_order: str | None = None
    weights_digest: str | None = None
    levels: "tuple[Level, ...]" = ()
    value_bytes: int = 2
    tower: "Tower | None" = None
    seen: "Seen | None" = None
    last_stage: int | None = None
    attending: float = 1.0
    weights: float = 0.0
    kept_width: int = 0
    holding: float | None = None
    limit: str = ""
    states: bool = False

    @property
    def kv_mib(self) -> float:
        """MiB of the visual tokens' keys and values, unpruned, at the mean prompt."""
        width = self.kept_width or 2 * self.num_kv_heads * self.head_dim
        holding = self.attending if self.holding is None else self.holding
        return self.num_layers * width * self.image_tokens * holding * self.value_bytes / _MIB


def facts_of(
    family: "Family", *, image_tokens: float, text_tokens: float, **known: Any
) -> ModelFacts:
    """Return the sizes of a model with what else is known.

    Args:
        family: View of the model.
        image_tokens: Mean image tokens of a prompt.
        text_tokens: Mean other tokens of a prompt.
        known: Other fields.
    """
    from prunetune.families.base_configs import field_of, inner_width

    text = family.text_model.config
    attending, weights = _layers(family)
    heads, latent = int(text.num_attention_heads), _latent_head(text)
    if family.uneven:
        known = _of_uneven(family) | known
    return ModelFacts(
        model_type=family.config.model_type,
        num_layers=len(family.layers),
        hidden_size=int(text.hidden_size),
        intermediate_size=inner_width(text),
        num_heads=heads,
        num_kv_heads=int(field_of(text, "num_key_value_heads") or heads),
        head_dim=latent or int(field_of(text, "head_dim") or text.hidden_size // heads),
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        value_bytes=int(family.text_model.dtype.itemsize),
        tower=family.tower_shape(),
        last_stage=family.last_stage if family.limit else None,
        limit=family.limit,
        states=family.hybrid,
        kept_width=int(text.kv_lora_rank + text.qk_rope_head_dim) if latent else 0,
        **{"attending": attending, "weights": weights, **known},
    )


def _latent_head(text: Any) -> int:
    """Return the mean width of a head's queries and values under latent attention; 0: no such.

    DeepSeek-V3's (arXiv 2412.19437): the cache keeps one latent of all heads, and a rotated key.
    """
    if not getattr(text, "kv_lora_rank", None):
        return 0
    return int(text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim) // 2


def _of_uneven(family: "Family") -> dict[str, float]:
    """Return what layers of unequal widths come to, in widths that the text config names."""
    from prunetune.families.base_configs import field_of
    from prunetune.families.base_towers import weights_passed

    text = family.text_model.config
    depth, width = len(family.layers), int(field_of(text, "head_dim"))
    attention: list[Any] = [layer.self_attn for layer in family.layers]
    chosen = int(getattr(text, "top_k_experts", None) or 0)
    queries = sum(int(part.q_proj.out_features) for part in attention)
    keys = sum(int(a.k_proj.out_features) for k, a in enumerate(attention) if not family.reuses(k))
    return {
        "weights": sum(weights_passed(layer, chosen) for layer in family.layers) / depth,
        "attending": queries / (depth * int(text.num_attention_heads) * width),
        "holding": keys / (depth * int(field_of(text, "num_key_value_heads")) * width),
    }


def _layers(family: "Family") -> tuple[float, float]:
    """Return ``attending`` and ``weights``; 1 and 0 where all layers attend, and by plain heads."""
    from prunetune.families.base_towers import weights_passed

    if not family.hybrid and not _latent_head(family.text_model.config):
        return 1.0, 0.0
    carrying = [k for k in range(len(family.layers)) if family.carries(k)]
    chosen, depth = getattr(family.text_model.config, "num_experts_per_tok", 0), len(family.layers)
    weights = [weights_passed(layer, chosen or 0) for layer in family.layers]
    return 1 - len(carrying) / depth, sum(weights) / depth


def retention_by_layer(stages: Sequence[Step], num_layers: int) -> list[float]:
    """Return the share of image tokens that each decoder layer computes on, ``num_layers`` long."""
    shares = [1.0] * num_layers
    for stage in stages:
        for layer in range(stage.layer, num_layers):
            shares[layer] = stage.retention
    return shares


def mean_retention(stages: Sequence[Step], num_layers: int) -> float:
    """Return the mean retention over all decoder layers: 1.0 before the first stage's layer."""
    return math.fsum(retention_by_layer(stages, num_layers)) / num_layers


def kv_ratio(stages: Sequence[Step], num_layers: int) -> float:
    """Return the visual KV-cache share, pruned over unpruned: the mean retention, by definition."""
    return mean_retention(stages, num_layers)


def flops_ratio(stages: Sequence[Step], facts: ModelFacts, tokens: float = 1.0) -> float:
    """Return the language model's prefill FLOPs, pruned over unpruned, at the mean prompt.

    Args:
        stages: Of the config.
        facts: The model, and the mean prompt with its full pictures.
        tokens: Share of the image tokens that is left where pictures are made smaller first.
    """
    image = tokens * facts.image_tokens
    pruned = math.fsum(
        layer_flops(share * image + facts.text_tokens, facts)
        for share in retention_by_layer(stages, facts.num_layers)
    )
    full = layer_flops(facts.image_tokens + facts.text_tokens, facts) * facts.num_layers
    return pruned / full


def layer_flops(tokens: float, facts: ModelFacts) -> float:
    """Return the FLOPs of one decoder layer's prefill over ``tokens``, causal attention halved."""
    weights, queries = flops_terms(facts)
    # Scores and weighted values: two products over the causal half of tokens x tokens.
    attention = 2 * queries * tokens * (tokens + 1) / 2
    return 2 * (weights * tokens + attention)


def flops_terms(facts: ModelFacts) -> tuple[float, float]:
    """Return the weights that every token passes in a layer, and the width of all queries.

    Both are those of a mean layer, where some carry a state instead of attending.
    """
    queries = facts.num_heads * facts.head_dim
    if facts.weights:
        return facts.weights, facts.attending * queries
    keys = facts.num_kv_heads * facts.head_dim
    weights = facts.hidden_size * (2 * queries + 2 * keys + 3 * facts.intermediate_size)
    return weights, float(queries)
