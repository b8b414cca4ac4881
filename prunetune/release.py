"""What belongs to a release of transformers: names of arguments, caches; tested range.

Nothing else in this package names any of it but ``masking``, so that a release that renames one is
met here.
"""

import inspect
import logging
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from prunetune.errors import UnsupportedModelError

__all__ = [
    "KEY_BIAS",
    "Cache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LayerCall",
    "StaticLayer",
    "StaticSlidingWindowLayer",
    "Told",
    "attention_named",
    "cache_argument",
    "cache_of",
    "caches_among",
    "carries_state",
    "check_names",
    "keyed_layers",
    "layer_arguments",
    "register_attention",
    "takes_bounds",
    "unsupported",
    "warn_of_version",
]

logger = logging.getLogger(__name__)

OLDEST, NEWEST = (5, 17), (5, 24)
"""Releases (major, minor) that this package's contract was tested on, both included."""

CACHE_NAMES = ("cache", "past_key_values")
"""What models and decoder layers call the cache: from 5.24 on, and before."""

LAYER_NAMES = ("attention_mask", "position_ids", "position_embeddings")
"""What decoder layers are told beside their states."""

KEY_BIAS = "prunetune_key_bias"
"""What layers hand on to an attention that has been told to expect it."""

BOUNDS = "cu_seq_lens_q"
PACKED_NAMES = (BOUNDS, "cu_seq_lens_k", "max_length_q", "max_length_k")
"""How a caller tells FlashAttention where the samples of a packed row begin and end."""

_warned: set[str] = set()


def version() -> str:
    """Return the version of the transformers that is loaded."""
    # Not the module bound above: transformers replaces itself in ``sys.modules`` while it loads.
    return str(sys.modules["transformers"].__version__)


def tested_range() -> str:
    """Return the tested releases in words."""
    return f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"


def is_tested(release: str) -> bool:
    """Tell whether a version of transformers lies in the tested range."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is not None and OLDEST <= (int(numbers[1]), int(numbers[2])) <= NEWEST


def warn_of_version() -> None:
    """Say, once a process, that the installed transformers was not tested."""
    loaded = version()
    if is_tested(loaded) or loaded in _warned:
        return
    _warned.add(loaded)
    logger.warning(
        "transformers %s is outside the tested range, %s: what can be checked while a config is "
        "applied is checked; run `prunetune verify` on your config before you rely on it",
        loaded,
        tested_range(),
    )


def unsupported(what: str) -> UnsupportedModelError:
    """Return the error for a release that does not do what pruning builds on.

    Args:
        what: What was found, as the second half of a sentence.
    """
    return UnsupportedModelError(
        f"transformers {version()} (tested: {tested_range()}) does not do what "
        f"pruning builds on: {what}; nothing was answered; install a tested release"
    )


def caches_among(values: Iterable[Any]) -> list[Any]:
    """Return the caches among ``values``, whatever their names."""
    return [value for value in values if isinstance(value, Cache)]


def cache_of(call: Any) -> Any:
    """Return the cache in a model's output or in a call's arguments; None where there is none.

    Known names come first: they also hold what is no ``Cache`` by class. Else the class tells.

    Args:
        call: A ``ModelOutput``, the tuple that a model returns instead, or a mapping from names
            to arguments.
    """
    if isinstance(call, tuple):
        return next(iter(caches_among(call)), None)
    for name in CACHE_NAMES:
        # Not getattr: from 5.24 on the old name still works on outputs, with a warning.
        if call.get(name) is not None:
            return call[name]
    return next(iter(caches_among(call.values())), None)


def keyed_layers(cache: Any) -> list[int]:
    """Return which layers of a cache keep keys of tokens; others carry a state, and no length."""
    return [k for k, entry in enumerate(cache.layers) if isinstance(entry, CacheLayerMixin)]


def carries_state(cache: Any) -> bool:
    """Tell whether some layer of a cache carries a state of tokens that it has seen."""
    seen = (getattr(entry, "has_previous_state", None) for entry in cache.layers)
    return any(any(one.values()) if isinstance(one, dict) else bool(one) for one in seen)


def cache_argument(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Return ``cache`` as the argument that ``model``'s forward takes it by."""
    names = inspect.signature(model.forward).parameters
    return {next(name for name in CACHE_NAMES if name in names): cache}


# -- calls -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a decoder layer is told beside its states.

    Attributes:
        mask: None, ``[B, heads or 1, m, keys]`` bool or additive, or ``[B, keys]`` bool.
        rotary: Rotary cos and sin, ``[B or 1, m, head_dim]``; half as wide where ``complex``.
        positions: ``[B or 1, m]`` int64, or None.
        bias: A bias of keys for attention that takes no mask, or None.
        index: ``[B, m]`` int64, the forward's slots that the states are of, where it is not all of
            them: for what the model tells the layer token by token.
        complex: Whether the layer takes cos and sin as one complex number (Llama 4).
    """

    mask: Any
    rotary: tuple[Tensor, ...]
    positions: Tensor | None
    bias: Any = None
    index: Tensor | None = None
    complex: bool = False

    def last(self, count: int, of: int) -> "Told":
        """Return the same of the last states: some models stop computing on others."""
        if count == of:
            return self
        cut = slice(-count, None)
        mask = self.mask[:, :, cut] if isinstance(self.mask, Tensor) else None
        if mask is None and count > 1:
            raise unsupported("it computes on some states only, which needs a mask of them")
        return replace(self, mask=mask, rotary=tuple(p[:, cut] for p in self.rotary), index=None)

    def arguments(self) -> dict[str, Any]:
        """Return the mask, positions and rotary rows by the names that layers take them by."""
        turned: Any = torch.complex(*self.rotary) if self.complex else self.rotary
        return dict(zip(LAYER_NAMES, (self.mask, self.positions, turned), strict=True))


@dataclass(frozen=True)
class LayerCall:
    """One call of a decoder layer.

    Attributes:
        hidden: ``[B, m, d]`` states entering it.
        told: What the model told it.
        cache: The cache that it will grow, or None.
        bounds: ``[samples + 1]`` int, where the samples of a packed row begin and end, as the
            caller told FlashAttention; None: not told.
    """

    hidden: Tensor
    told: Told
    cache: Any
    bounds: Tensor | None
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any]

    @property
    def mark(self) -> Tensor:
        """A tensor that this call's layer is given again where it is run once more."""
        turned = self._kwargs[LAYER_NAMES[2]]
        mark: Tensor = turned if isinstance(turned, Tensor) else turned[0]
        return mark

    @classmethod
    def read(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "LayerCall":
        """Read a layer's arguments, as a forward pre-hook gets them.

        Raises:
            UnsupportedModelError: A name is missing that pruning has to replace.
        """
        mask, positions, rotary = LAYER_NAMES
        hidden = args[0] if args else kwargs.get("hidden_states")
        missing = [name for name in (mask, rotary) if name not in kwargs]
        if hidden is None or missing:
            what = ", ".join(missing) or "its states"
            raise unsupported(f"a decoder layer was called without {what}")
        turned = kwargs[rotary]
        whole = isinstance(turned, Tensor)
        pair = (turned.real, turned.imag) if whole else turned
        told = Told(kwargs[mask], pair, kwargs.get(positions), complex=whole)
        return cls(hidden, told, cache_of(kwargs), kwargs.get(BOUNDS), args, kwargs)

    def with_(self, hidden: Tensor, told: Told) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the layer's args and kwargs with other states (``[B, m, d]``), told otherwise."""
        kwargs = dict(self._kwargs)
        if told is not self.told:
            kwargs |= replace(told, complex=self.told.complex).arguments()
            # Of the whole row: positions tell what is left of each sample.
            kwargs = {name: kwargs[name] for name in kwargs if name not in PACKED_NAMES}
        if told.bias is not None:
            kwargs[KEY_BIAS] = told.bias
        if self._args:
            return (hidden, *(_gathered(part, told.index) for part in self._args[1:])), kwargs
        return (), kwargs | {"hidden_states": hidden}


def _gathered(part: Any, index: Tensor | None) -> Any:
    """Return what a model tells a layer of every token, ``[B, S, d]``, of the tokens left."""
    if index is None or not isinstance(part, Tensor) or part.dim() != 3:
        return part
    return part.gather(1, index.to(part.device)[..., None].expand(-1, -1, part.shape[-1]))


def layer_arguments(told: Told) -> dict[str, Any]:
    """Return what a decoder layer takes when it is called without a cache."""
    return told.arguments() | {"use_cache": False}


def check_names(base: nn.Module, layer: nn.Module) -> None:
    """Raise unless a base model and its decoder layers take what pruning replaces, by its names.

    Raises:
        UnsupportedModelError: A name is unknown.
    """
    known = inspect.signature(base.forward).parameters
    missing = [n for n in ("input_ids", "inputs_embeds", LAYER_NAMES[0]) if n not in known]
    if not any(name in known for name in CACHE_NAMES):
        missing.append(" or ".join(CACHE_NAMES))
    taken = inspect.signature(layer.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        missing += [name for name in LAYER_NAMES if name not in taken]
    if missing:
        raise unsupported(f"{type(base).__name__} has no argument {', '.join(missing)}")


def takes_bounds(config: Any) -> bool:
    """Tell whether a text model's attention is told samples of a row by their bounds."""
    return "flash" in str(getattr(config, "_attn_implementation", ""))


def attention_named(name: str) -> Any:
    """Return an attention function of transformers by its name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[name]


def register_attention(name: str, function: Any) -> None:
    """Give transformers an attention function under a name of ours."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(name, function)
