"""Whether a config fits a model, and ``apply``."""

import logging
from os import PathLike
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.families import FAMILIES, Family
from prunetune.families.base import refuse
from prunetune.families.bases.layers import CARRYING
from prunetune.models.fingerprint import weights_digest
from prunetune.pixels.processors import layout_of, put_on
from prunetune.runtime.choice.taps import row_readable
from prunetune.runtime.handle import Handle
from prunetune.runtime.layers.mass import check_kernel

__all__ = ["Handle", "apply", "check_fits", "family_of"]

logger = logging.getLogger(__name__)

_SHARED = "its layers take a per-layer input or share KV states token by token"
_CROSS = "its image tokens never enter the language model's sequence (cross-attention)"
REFUSED = {
    "florence2": _CROSS,
    "gemma3n": _SHARED,
    "gemma4_unified": _SHARED,
    "idefics": _CROSS,
    "internvl_chat": "it is remote code; load the -hf conversion, whose model_type is internvl",
    "mllama": _CROSS,
    "t5gemma2": _CROSS,
}
_COMPARED: WeakKeyDictionary[nn.Module, set[str | None]] = WeakKeyDictionary()
"""Models, and the digests that their weights were compared with."""
PRUNABLE_LAYERS = {"chunked_attention", "full_attention", "sliding_attention"} | CARRYING


def apply(
    model: nn.Module,
    config: PruningConfig | str | PathLike[str],
    *,
    processor: Any = None,
    strict: bool = False,
) -> "Handle":
    """Apply a pruning config to a model until the handle is removed.

    The model's code and weights are not changed: forward pre-hooks on its decoder layers drop
    tokens in the prefill, so that later layers compute on and cache fewer. Outputs keep their
    full length; a dropped token's place holds the state of the last survivor before it.

    Example::

        with prunetune.apply(model, PruningConfig.load("llava-next.prune.json")):
            model.generate(**inputs)

    Args:
        model: A Hugging Face vision-language model of a supported family.
        config: What to prune, where; or a config file, of this machine or of the hub
            (``hf://org/name/file[@revision]``).
        processor: Of the model. Needed where the config has ``pixels``: until the handle is
            removed, its pictures and videos are made smaller first.
        strict: Refuse a model whose architecture fingerprint is not the config's, instead of
            warning.

    Returns:
        The handle: a context manager with ``remove()`` and ``trace``.

    Raises:
        ConfigError: The config was made for another model type or depth, or needs a processor
            and got none that it can use, or the model has a config applied already.
        UnsupportedModelError: The model cannot be pruned; the message names the reason.
    """
    if isinstance(config, str | PathLike):
        config = PruningConfig.load(str(config))
    if not isinstance(config, PruningConfig):
        raise ConfigError(
            f"apply: config: received {type(config).__name__}, allowed PruningConfig, or the path "
            "of a config file"
        )
    family = family_of(model)
    check_fits(family, config, strict=strict)
    if config.pixels is None or not config.pixels.shrinks:
        return Handle(family, config)
    if processor is None:
        raise ConfigError(
            f"apply: processor: received None, but the config has pixels ({config.pixels.shown}): "
            "pass the model's processor, apply(model, config, processor=processor), which then "
            "makes pictures smaller; or pass prunetune.resized(processor, config)"
        )
    undo = put_on(processor, config.pixels, config.model.model_type)
    try:
        return Handle(family, config, undo)
    except BaseException:
        undo()
        raise


def family_of(model: nn.Module) -> Family:
    """Return the family view of a model, looking through PEFT and ``torch.compile`` wrappers.

    Raises:
        UnsupportedModelError: No family supports the model.
    """
    inner: Any = getattr(model, "_orig_mod", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    model_type = getattr(getattr(inner, "config", None), "model_type", None)
    if model_type in REFUSED:
        raise UnsupportedModelError(f"{model_type} cannot be pruned: {REFUSED[model_type]}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    family = FAMILIES.get(model_type)(inner)
    check_layers(family)
    return family


def check_layers(family: Family) -> None:
    """Raise unless every decoder layer attends to keys of single tokens, and caches its own.

    Or carries a state along the sequence: only before the first such layer may tokens be dropped,
    see ``check_fits``. And unless its two norms stand before what they are for.

    A family's language model is what its checkpoint says: LLaVA can have any.

    Raises:
        UnsupportedModelError: Some layers are of another kind, share a cache, or are normed
            elsewhere.
    """
    config = family.text_model.config
    kinds = set(getattr(config, "layer_types", None) or ()) - PRUNABLE_LAYERS
    if kinds:
        raise refuse(
            family.model,
            f"some layers of its language model are of kind {', '.join(sorted(kinds))}: what they "
            "carry along the sequence cannot lose tokens afterwards",
        )
    if all(map(family.carries, range(len(family.layers)))):
        raise refuse(family.model, "no layer of its language model keeps keys of tokens")
    # Only what stands before a stage is scored.
    scored = [family.layers[k] for k in range(family.last_stage)]
    if not all(_pre_normed(layer) for layer in scored or (() if family.hybrid else family.layers)):
        kind = getattr(config, "model_type", "unknown")
        raise refuse(
            family.model,
            f"layers of its language model ({kind}) have no norm before the attention and another "
            "before the MLP, and scores are made of what these give",
        )
    shared = getattr(config, "num_kv_shared_layers", 0)
    if shared and not any(map(family.reuses, range(len(family.layers)))):
        raise refuse(family.model, "layers of its language model share their KV cache")


def check_fits(family: Family, config: PruningConfig, *, strict: bool) -> None:
    """Raise unless ``config`` was made for a model like ``family``'s.

    Raises:
        ConfigError: Another model type or depth, positions that have no meaning here, or with
            ``strict`` another fingerprint.
        UnsupportedModelError: A scorer reads attention that this language model does not show, or
            its attention takes no bias of keys.
    """
    from prunetune.models.fingerprint import fingerprint

    ref = config.model
    if ref.model_type != family.config.model_type:
        raise ConfigError(
            f"the config is for model_type {ref.model_type!r}, the model is "
            f"{family.config.model_type!r}; search a config for this model"
        )
    depth = len(family.layers)
    if ref.num_layers != depth:
        raise ConfigError(
            f"the config is for {ref.num_layers} decoder layers, the model has {depth}; "
            "search a config for this model"
        )
    if config.positions == "packed" and family.multimodal_positions:
        raise ConfigError(
            f"positions: received 'packed', allowed 'original' for {ref.model_type}: its "
            "multimodal rotary positions are rows and columns, which renumbering would erase"
        )
    if config.pixels is not None and config.pixels.shrinks:
        layout_of(ref.model_type)
    if family.limit:
        _check_limit(family, config)
    _check_rows(family, config)
    if any(stage.mass for stage in config.stages):
        check_kernel(family.text_model.config)
    if ref.fingerprint is not None and ref.fingerprint != fingerprint(family.config):
        message = (
            "the config was made for a model of another architecture fingerprint "
            f"({ref.name or 'unnamed'}); check it with `prunetune verify` before relying on it"
        )
        if strict:
            raise ConfigError(message)
        logger.warning(message)
    else:
        _check_weights(family, config)


def _check_limit(family: Family, config: PruningConfig) -> None:
    """Raise unless a config leaves alone what a state has taken up, or other layers reuse."""
    last = family.last_stage
    allowed = "layer 0" if last == 0 else f"layers 0 to {last}"
    for stage in config.stages:
        if stage.layer > last:
            raise UnsupportedModelError(
                f"stages: received a stage at layer {stage.layer}, allowed {allowed} for "
                f"{config.model.model_type}: {family.limit}; search a config with --layers 0-{last}"
            )
        if stage.mass and family.hybrid:
            raise UnsupportedModelError(
                f"mass: received {stage.mass:g}, allowed 0 for {config.model.model_type}: layers "
                f"of kind {family.layer_kind(last)} have no keys that could count for several"
            )


def same_weights(model: nn.Module, config: PruningConfig) -> bool | None:
    """Tell whether a model has the weights that a config was searched with.

    Returns:
        None where the config does not say, or weights of this kind cannot be read.
    """
    wanted = config.provenance.weights_digest
    if wanted is None:
        return None
    try:
        return weights_digest(model) == wanted
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        # Sharded tensors, or packed parameters, which are no tensors.
        logger.debug("the weights' digest cannot be taken", exc_info=True)
        return None


def _pre_normed(layer: nn.Module) -> bool:
    # OLMo 2's norms follow; Cohere has one for attention and MLP, which run side by side.
    second = ("post_attention_layernorm", "pre_feedforward_layernorm")
    return hasattr(layer, "input_layernorm") and any(hasattr(layer, name) for name in second)


def _check_weights(family: Family, config: PruningConfig) -> None:
    """Warn where the weights are others: once a model, for this reads all of its tensors."""
    compared = _COMPARED.setdefault(family.model, set())
    wanted = config.provenance.weights_digest
    if wanted in compared:
        return
    compared.add(wanted)
    if same_weights(family.model, config) is False:
        logger.warning(
            "the config was searched with other weights (%s), or with the same in another number "
            "format; check it with `prunetune verify` before relying on it",
            config.model.name or "unnamed",
        )


def _check_rows(family: Family, config: PruningConfig) -> None:
    used = [sc for stage in config.stages for sc in stage.scorers if sc.usable_at(stage.layer)]
    names = sorted({scorer.name for scorer in used if scorer.needs & {"last_query", "keys"}})
    if names and not row_readable(list(family.layers)[: family.last_stage + 1]):
        kind = getattr(family.text_model.config, "model_type", "unknown")
        raise UnsupportedModelError(
            f"the config's scorer {', '.join(names)} cannot read the attention of a language model "
            f"of type {kind}: its layers have no q_proj and k_proj of their own, or no norm before "
            "them; use a config without that scorer"
        )
