"""What ``--model_args`` takes, and how a model is loaded and pruned by it."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.models import LoadedModel, load_model
from prunetune.models.options import differing
from prunetune.runtime.apply import Handle, apply

LOADING = ("dtype", "device", "device_map", "attn", "revision", "trust_remote_code")
ALIASES = {
    "torch_dtype": "dtype",
    "attn_implementation": "attn",
    "model": "pretrained",
    "prune": "config",
}
_NONE = ("", "none", "None", None)


@dataclass(frozen=True)
class Pruned:
    """A loaded model under its config.

    Attributes:
        loaded: The model and its processor.
        config: None for the model as it is.
        handle: Takes the config off again; None without one.
        note: Where the processor is set otherwise than the search's; empty if nowhere.
    """

    loaded: LoadedModel
    config: PruningConfig | None
    handle: Handle | None
    note: str = ""


def loaded_pruned(pretrained: Any, config: Any, more: dict[str, Any]) -> Pruned:
    """Load a model and apply a config to it.

    Args:
        pretrained: ``tiny``, an alias, a hub id or a folder; none for the config's own model.
        config: A config file, of this machine or of the hub; none for no pruning.
        more: ``LOADING``, ``min_pixels``, ``max_pixels``, and ``processor_KEY`` for any other
            option of the processor.

    Raises:
        PrunetuneError: One of them is unknown or not valid, or they do not fit; one line.
    """
    pruning = None if config in _NONE else PruningConfig.load(str(config))
    loading, processor = _split(more)
    ref, own = (None, None) if pruning is None else (pruning.model, pruning.provenance.processor)
    name = None if pretrained in _NONE else str(pretrained)
    if name is None and ref is not None:
        name = ref.name
        loading.setdefault("revision", ref.revision)
    if not name:
        raise ConfigError(
            "--model_args: no model; say pretrained=NAME (tiny, an alias, a hub id or a folder), "
            "or config=FILE of a config that names its model"
        )
    options, note = differing(own, processor or None)
    if not {"device", "device_map"} & loading.keys() and (device := own_device()):
        loading["device"] = device
    loaded = load_model(name, processor=options, **loading)
    handle = None
    if pruning is not None:
        handle = apply(loaded.model, pruning, processor=loaded.processor)
    return Pruned(loaded, pruning, handle, note or "")


def own_device() -> str | None:
    """Return the GPU of this process where several were started (``accelerate launch``)."""
    import torch

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several or not torch.cuda.is_available():
        return None
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _split(more: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is for the model and what is for its processor.

    Raises:
        ConfigError: A key is neither.
    """
    loading: dict[str, Any] = {}
    processor: dict[str, Any] = {}
    for key, value in more.items():
        key = ALIASES.get(key, key)
        if key in LOADING:
            loading[key] = value
        elif key in ("min_pixels", "max_pixels"):
            processor[key] = value
        elif key.startswith("processor_"):
            processor[key.removeprefix("processor_")] = value
        else:
            known = ("pretrained", "config", "system_prompt", "num_frames", *LOADING)
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"--model_args: received {key!r}, allowed {', '.join(known)}, min_pixels, "
                f"max_pixels, processor_KEY{hint}"
            )
    return loading, processor
