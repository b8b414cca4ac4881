"""Devices and number formats by name, and where a model wants its inputs."""

from typing import Any

from prunetune.errors import ConfigError
from prunetune.messages import shown
from prunetune.texts import parse_json

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def dtype_named(dtype: Any) -> Any:
    """Return the torch dtype of a name; a dtype and ``auto`` pass as they are.

    Raises:
        ConfigError: The name is not one that models are run in.
    """
    import torch

    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(dtype, dtype)
    if short not in ("float32", "float16", "bfloat16", "float64"):
        raise ConfigError(f"dtype is {dtype!r}; allowed: auto, float32, float16, bfloat16, float64")
    return getattr(torch, short)


def attn_named(attn: str | None) -> str | None:
    """Return the name of an attention implementation that transformers has; None passes.

    A name with a slash is a kernel of the hub, which only transformers can look up.

    Raises:
        ConfigError: transformers has none of that name.
    """
    if attn is None or "/" in attn:
        return attn
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Paged ones are for transformers' continuous batching, which keeps another cache.
    known = [name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("paged|")]
    allowed = ["eager", *sorted(known)]
    if attn not in allowed:
        raise ConfigError(
            f"attn is {attn!r}; allowed: {', '.join(allowed)}; leave it out for the model's default"
        )
    return attn


def device_named(device: Any) -> Any:
    """Return the torch device of a name; None is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        named = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; allowed: cpu, cuda, cuda:1, ...") from None
    if named.type == "meta":
        raise ConfigError("device is 'meta', which computes nothing; allowed: cpu, cuda, cuda:1")
    count = torch.cuda.device_count()
    if named.type == "cuda" and (named.index or 0) >= count:
        raise ConfigError(f"device is {device!r}; this machine has {count} CUDA device(s): use cpu")
    return named


def device_of(model: Any) -> Any:
    """Return the device that a model's inputs belong on.

    A model spread by accelerate may have parameters that are elsewhere until they are used; its
    hooks tell where the embedding computes.
    """
    return execution_device(model.get_input_embeddings())


def execution_device(module: Any) -> Any:
    """Return the device that a module computes on: accelerate's hook knows, else its weights."""
    import torch

    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if place is not None:
        return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return next(module.parameters()).device


def brought(value: Any, device: Any) -> Any:
    """Return tensors, also in tuples and mappings, on ``device``; what is there stays as it is."""
    if isinstance(value, tuple):
        return tuple(brought(part, device) for part in value)
    if isinstance(value, dict):
        return {name: brought(part, device) for name, part in value.items()}
    if hasattr(value, "device") and value.device != device:
        return value.to(device)
    return value


def device_map_named(device_map: Any) -> Any:
    """Return a device map as transformers takes it, checked before weights are read.

    Args:
        device_map: None, a name, a mapping from module to device, or that as JSON.

    Raises:
        ConfigError: It is none of these, or accelerate is not installed.
    """
    from importlib.util import find_spec

    if device_map is None:
        return None
    if find_spec("accelerate") is None:
        raise ConfigError(
            f"device_map={device_map!r} needs accelerate, which is not installed; run: "
            "pip install 'prunetune[devices]', or give --device"
        )
    if isinstance(device_map, str) and device_map.lstrip().startswith("{"):
        try:
            return parse_json(device_map)
        except ValueError as error:
            raise ConfigError(
                f"device_map is {shown(device_map)}, which is not JSON: {error}"
            ) from None
    if isinstance(device_map, str) and device_map not in _MAPS:
        raise ConfigError(
            f"device_map is {device_map!r}; allowed: {', '.join(_MAPS)}, or JSON like "
            '{"model.vision_tower": 0, "": 1}'
        )
    return device_map


def device_shown(device: Any) -> str:
    """Return a device as people call it."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
