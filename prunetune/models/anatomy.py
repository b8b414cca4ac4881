"""What a model class is made of: read from its config and the class on the meta device.

No weights are read and none are allocated, so it takes seconds for a model of any size.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.messages import one_line, shown
from prunetune.models.described import CONFIG, config_of, described
from prunetune.models.weights import existing

_TOWERS = ("vision", "visual", "image", "siglip")
_METHODS = {"image": "get_image_features", "video": "get_video_features"}


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a vision-language model are.

    Attributes:
        model_type: As in the config.
        architecture: Name of the class.
        decoder: Dotted path of the decoder stack from the base model, which is ``model.model``
            where there is one.
        depth: Decoder layers.
        kinds: Of each of them; empty where the config has none.
        norms: Names of the norms of one decoder layer, in order.
        final_norm: Name of the norm behind the last layer; empty where none was found.
        tower: Path of the vision tower from the base model; empty where none was found.
        tower_layers: Path of its layers from there.
        tower_attention: Name of the attention in one of them; empty where none was found.
        fused: Whether that attention projects queries, keys and values in one piece.
        projectors: Paths from the base model of what turns the tower's rows into tokens.
        image_token: Name of the placeholder's id in the config; empty where none was found.
        encoders: Modality to the base model's encoder method.
        inputs: Names of what the image encoder takes.
        packs: Whether the base model has ``pack_image_features``.
        pooled: Whether the encoder method returns ``pooler_output``, as far as its source says.
        blocks: What the forward takes that makes pictures attend both ways; empty: nothing.
        text_type: The decoder's own ``model_type``.
    """

    model_type: str
    architecture: str
    decoder: str
    depth: int
    kinds: tuple[str, ...]
    norms: tuple[str, ...]
    final_norm: str
    tower: str
    tower_layers: str
    tower_attention: str
    fused: bool
    projectors: tuple[str, ...]
    image_token: str
    encoders: dict[str, str]
    inputs: tuple[str, ...]
    packs: bool
    pooled: bool
    blocks: str
    text_type: str


def on_meta(folder: str | Path) -> Any:
    """Return the model of a folder's ``config.json`` on the meta device.

    Raises:
        ConfigError: There is no ``config.json``, or transformers cannot make a model of it.
        UnsupportedModelError: It is not a vision-language model that transformers has a class for.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    file = Path(folder) / CONFIG
    if existing(str(file)) is None:
        raise ConfigError(
            f"--check: received {str(folder)!r}, allowed a folder with a config.json; download one "
            "file of the checkpoint: config.json"
        )
    kind = _kind(described(file), file)
    config = config_of(file.parent)
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise UnsupportedModelError(
            f"model_type {shown(kind)}: transformers makes no model of pictures and text of it "
            f"({one_line(error)})"
        ) from error


def _kind(said: dict[str, Any], file: Path) -> Any:
    if "auto_map" in said:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if said.get("model_type") not in CONFIG_MAPPING:
            raise ConfigError(
                f"--check: {file}: model_type {shown(said.get('model_type'))} is code of the "
                "folder's own (auto_map), which is not run; allowed a class that transformers has"
            )
    return said.get("model_type")


def anatomy(model: Any) -> Anatomy:
    """Return where the parts of a model are.

    Raises:
        UnsupportedModelError: It has no decoder stack, or no encoder method for pictures.
    """
    base = getattr(model, "model", model)
    decoder = _decoder(model, base)
    tower_path, tower = _tower(base)
    layers_path, layers = _largest(tower) if tower is not None else ("", None)
    attention = _named(layers[0], "attn", "attention") if layers else ""
    module = getattr(layers[0], attention) if layers and attention else None
    encoders = {m: name for m, name in _METHODS.items() if hasattr(base, name)}
    if "image" not in encoders:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no get_image_features, so nothing tells what its tower saw"
        )
    config, path = model.config, _path(base, decoder)
    others = {n: m for n, m in base.named_children() if any(True for _ in m.parameters())}
    taken = {path.split(".")[0], tower_path.split(".")[0]}
    token = next((n for n in ("image_token_id", "image_token_index") if hasattr(config, n)), "")
    return Anatomy(
        model_type=str(config.model_type),
        architecture=type(model).__name__,
        decoder=path,
        depth=len(decoder.layers),
        kinds=tuple(getattr(decoder.config, "layer_types", None) or ()),
        norms=tuple(n for n, _ in decoder.layers[0].named_children() if "norm" in n),
        final_norm=next((n for n, _ in decoder.named_children() if "norm" in n), ""),
        tower=tower_path,
        tower_layers=layers_path,
        tower_attention=attention,
        fused=module is not None and not hasattr(module, "q_proj"),
        projectors=tuple(n for n in others if n not in taken and "lm_head" not in n),
        image_token=token,
        encoders=encoders,
        inputs=tuple(
            name
            for name, one in inspect.signature(getattr(base, encoders["image"])).parameters.items()
            if one.kind is not one.VAR_KEYWORD
        ),
        packs=hasattr(base, "pack_image_features"),
        pooled="pooler_output" in _source(getattr(base, encoders["image"])),
        blocks=_both_ways(base),
        text_type=str(getattr(decoder.config, "model_type", "")),
    )


def _source(function: Any) -> str:
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def _both_ways(base: Any) -> str:
    """Return the name of the token types that a forward makes blocks of."""
    taken = inspect.signature(base.forward).parameters
    if "token_type_ids" in taken:
        return "token_type_ids"
    blocks = "block_sequence_ids" in _source(base.forward)
    return "mm_token_type_ids" if blocks and "mm_token_type_ids" in taken else ""


def _decoder(model: Any, base: Any) -> Any:
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    for one in (found, getattr(base, "language_model", None), getattr(base, "text_model", None)):
        # What a causal model wraps counts, not the wrapper.
        inner = getattr(one, "model", one)
        if isinstance(getattr(inner, "layers", None), nn.ModuleList):
            return inner
    raise UnsupportedModelError(
        f"{type(model).__name__}: no decoder stack with `layers` was found in it, and tokens "
        "are dropped between decoder layers"
    )


def _tower(base: nn.Module) -> tuple[str, nn.Module | None]:
    """Return the first part whose name speaks of vision, and its path."""
    for name, module in base.named_children():
        if any(word in name for word in _TOWERS) and _largest(module)[1] is not None:
            return name, module
    return "", None


def _largest(module: nn.Module) -> tuple[str, Any]:
    """Return the longest list of equal modules in a tower, and its path."""
    lists = [
        (name, one)
        for name, one in module.named_modules()
        if isinstance(one, nn.ModuleList) and len({type(part) for part in one}) == 1
    ]
    return max(lists, key=lambda pair: len(pair[1]), default=("", None))


def _named(module: nn.Module, *words: str) -> str:
    names = [n for n, _ in module.named_children() if any(word in n.lower() for word in words)]
    return next((name for name in names if "norm" not in name), "")


def _path(root: nn.Module, wanted: nn.Module) -> str:
    return next((name for name, one in root.named_modules() if one is wanted), "")
