"""Options of a processor: what is searched with them has to be served with them."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from prunetune.errors import ConfigError

PARTS = ("image_processor", "video_processor")
# Of one call, not of what a picture becomes.
_NOT_OPTIONS = frozenset(
    {"data_format", "device", "disable_grouping", "input_data_format", "return_tensors"}
)
_SIDES = (96, 64)


def with_options(processor: Any, options: Mapping[str, Any]) -> Any:
    """Return a processor that prepares pictures as told; the same one, changed.

    An option goes to the part that knows it, pictures before videos. It is given to the part's own
    constructor, which turns ``min_pixels`` and ``max_pixels`` of Qwen-VL into its ``size``.

    Args:
        processor: Of a model.
        options: By name, as ``preprocessor_config.json`` has them.

    Raises:
        ConfigError: The processor has no such option, or cannot work with the value.
    """
    if not options:
        return processor
    parts = {name: part for name in PARTS if (part := getattr(processor, name, None)) is not None}
    told: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        told.setdefault(_part_of(processor, parts, key), {})[key] = value
    for name, given in told.items():
        _overrule(processor, name, given)
        part = parts[name]
        try:
            changed = type(part).from_dict({**part.to_dict(), **given})
            if name == PARTS[0]:
                changed(images=[_picture()], return_tensors="pt")
        except Exception as error:  # of many kinds: validation, missing keys of a size, arithmetic
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(
                f"processor: received {shown(given)}, which {type(part).__name__} cannot work "
                f"with: {reason}"
            ) from None
        setattr(processor, name, changed)
    return processor


def differing(
    own: Mapping[str, Any] | None, given: Mapping[str, Any] | None
) -> tuple[dict[str, Any] | None, str]:
    """Return the options to load with, and a line where they are not those of a config.

    No options are None: the model's own. No line is empty.

    Args:
        own: What a config was searched with.
        given: What was asked for; its options overrule the config's one by one.
    """
    before = dict(own or {})
    now = before | dict(given or {})
    changed = {key: value for key, value in now.items() if before.get(key) != value}
    if not changed:
        return now or None, ""
    with_ = shown({key: before[key] for key in changed if key in before}) or "the model's own"
    return now, (
        f"processor options differ: received {shown(changed)}, the config was searched with "
        f"{with_}; its figures do not hold for other pictures"
    )


def shown(options: Mapping[str, Any]) -> str:
    """Return options as they are typed."""
    import json

    return ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in options.items()
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise unless bounds on pixels are whole numbers in order.

    Raises:
        ConfigError: They are not.
    """
    low, high = (options.get(name) for name in ("min_pixels", "max_pixels"))
    for name, value in (("min_pixels", low), ("max_pixels", high)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is not None and not whole:
            raise ConfigError(
                f"processor: received {name}={value}, allowed a whole number of at least 1"
            )
    if (low or 0) > (high or math.inf):
        raise ConfigError(
            f"processor: received min_pixels={low} and max_pixels={high}; allowed: the first is "
            "at most the second"
        )


def _part_of(processor: Any, parts: Mapping[str, Any], key: str) -> str:
    names = {name: _names(part) for name, part in parts.items()}
    for name, known in names.items():
        if key in known:
            return name
    every = sorted(set().union(*names.values()))
    near = get_close_matches(key, every, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"processor: received the option {key!r}, which {type(processor).__name__} does not have; "
        f"allowed: {', '.join(every)}{hint}"
    )


def _names(part: Any) -> set[str]:
    """Return the options of a picture or video processor."""
    known = getattr(getattr(part, "valid_kwargs", None), "__annotations__", {})
    return {str(name) for name in known} - _NOT_OPTIONS


def _overrule(processor: Any, name: str, given: Mapping[str, Any]) -> None:
    """Let options win against what the processor itself says in every call.

    Raises:
        ConfigError: This release of transformers does not let them.
    """
    calls = {"image_processor": "images_kwargs", "video_processor": "videos_kwargs"}[name]
    said = getattr(processor, calls, None)
    if isinstance(said, Mapping):
        if said.keys() & given.keys():
            setattr(processor, calls, {**said, **{k: v for k, v in given.items() if k in said}})
        return
    kinds = getattr(type(processor), "valid_processor_kwargs", None)
    fixed = getattr(kinds, "_defaults", {}).get(calls, {}).keys() & given.keys()
    if fixed:
        raise ConfigError(
            f"processor: received {', '.join(sorted(fixed))}, which {type(processor).__name__} "
            "sets itself in every call before transformers 5.23; leave it out, or upgrade "
            "transformers"
        )


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", _SIDES, "white")
