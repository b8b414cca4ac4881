"""The unpruned model over the full length, with dropped tokens hidden as keys.

Where layers carry a state, from which nothing can be hidden, they are left out instead.

What a pruned run has to equal. Of the runtime it uses nothing: hooks of its own change the masks
that the model made, so that families which attend in both directions need no word here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from prunetune.families import Family

KERNELS = ("sdpa", "eager")
"""Attention implementations that take a mask of every query and key."""


def why_not(family: Family) -> str:
    """Return why tokens cannot be hidden in this model; empty where they can."""
    name = getattr(family.text_model.config, "_attn_implementation", None)
    if name in KERNELS:
        return ""
    return f"attention implementation {name} takes no mask of every query and key"


@contextmanager
def hidden(
    family: Family,
    alive: Tensor,
    *,
    packed: bool,
    rewrites: Mapping[int, tuple[Tensor, Tensor]],
    images: Sequence[Tensor] = (),
    shares: Mapping[int, float] | None = None,
) -> Iterator[None]:
    """Hide dropped tokens in one forward of one prompt without a cache.

    Args:
        family: View of the model, to which no config is applied.
        alive: ``[layers, S]`` bool, the keys of every decoder layer.
        packed: Whether positions are numbered over what is alive at layer 0.
        rewrites: By layer (slots ``[k]`` int64, states ``[k, d]``): what a restorer made of the
            states entering it.
        images: Slots of each image, ``[n]`` int64, where tokens count for those that they stand
            for.
        shares: By the layer of a stage its mass; None: no token counts for others.
    """
    if family.hybrid:
        with _removed(family, alive[-1], packed=packed, rewrites=rewrites):
            yield
        return
    weights = _Weights(alive, images, shares or {})

    def number(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        numbers = (alive[0].cumsum(0) - 1).clamp_min(0) + family.first_position
        return args, kwargs | {"position_ids": numbers[None]}

    def enter(layer: int, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        bias = weights.at(layer, states[0])
        if layer in rewrites:
            slots, new = (part.to(states.device) for part in rewrites[layer])
            states = states.clone()
            states[0, slots] = new.to(states.dtype)
        mask = _without(kwargs.get("attention_mask"), states, alive[layer].to(states.device))
        if shares:
            mask = torch.where(mask == 0, bias.to(mask.dtype), mask)
        if args:
            return (states, *args[1:]), kwargs | {"attention_mask": mask}
        return args, kwargs | {"hidden_states": states, "attention_mask": mask}

    with ExitStack() as stack:
        if packed:
            hook = family.text_model.register_forward_pre_hook(number, with_kwargs=True)
            stack.callback(hook.remove)
        for k, layer in enumerate(family.layers):
            hook = layer.register_forward_pre_hook(
                lambda _, args, kwargs, k=k: enter(k, args, kwargs), with_kwargs=True
            )
            stack.callback(hook.remove)
        yield


@contextmanager
def _removed(
    family: Family,
    alive: Tensor,
    *,
    packed: bool,
    rewrites: Mapping[int, tuple[Tensor, Tensor]],
) -> Iterator[None]:
    """Leave dropped tokens out of what a hybrid language model is given.

    Nothing can be hidden from a state. The others keep the positions that they had.

    Args:
        family: View of the model, whose config drops tokens before the first layer only.
        alive: ``[S]`` bool.
        packed: Whether positions are numbered over what is alive.
        rewrites: As in ``hidden``; of layer 0.
    """
    text = family.text_model
    before, own = text.__dict__.get("forward"), text.forward

    def forward(**given: Any) -> Any:
        states: Tensor = given["inputs_embeds"]
        if 0 in rewrites:
            slots, new = (part.to(states.device) for part in rewrites[0])
            states = states.clone()
            states[0, slots] = new.to(states.dtype)
        keep = alive.nonzero().flatten().to(states.device)
        places = given.get("position_ids")
        if places is None or packed:
            places = torch.arange(len(keep) if packed else len(alive), device=states.device)[None]
        # A row of plain positions before the triples: its gaps would be read as several samples.
        places = places[-3:] if places.dim() == 3 else places
        output = own(
            inputs_embeds=states[:, keep],
            position_ids=places if packed else places[..., keep.to(places.device)],
            attention_mask=torch.ones(1, len(keep), dtype=torch.long, device=states.device),
            use_cache=False,
        )
        whole = torch.zeros_like(states)
        whole[:, keep] = output.last_hidden_state
        output.last_hidden_state = whole
        return output

    text.__dict__["forward"] = forward
    try:
        yield
    finally:
        del text.__dict__["forward"]
        if before is not None:
            text.__dict__["forward"] = before


class _Weights:
    """How many tokens each one stands for, worked out on the states of the full-length run."""

    def __init__(
        self, alive: Tensor, images: Sequence[Tensor], shares: Mapping[int, float]
    ) -> None:
        self._alive, self._images, self._shares = alive, images, shares
        self._counts = torch.ones(alive.shape[1], dtype=torch.float64, device=alive.device)
        self._bias = torch.zeros_like(self._counts)

    def at(self, layer: int, states: Tensor) -> Tensor:
        """Return what is added to the logits of each key of a layer, ``[S]``.

        Args:
            layer: 0-based; to be asked for in order.
            states: ``[S, d]`` entering it.
        """
        if layer in self._shares:
            for slots in self._images:
                before = slots if not layer else slots[self._alive[layer - 1, slots]]
                after = slots[self._alive[layer, slots]]
                if len(after):
                    self._join(before, after, states.float())
                self._bias[slots] = self._shares[layer] * self._counts[slots].log()
        return self._bias.to(states.device)

    def _join(self, before: Tensor, after: Tensor, states: Tensor) -> None:
        one, two = (
            torch.nn.functional.normalize(states[part.to(states.device)], dim=-1)
            for part in (before, after)
        )
        near = (one @ two.T).argmax(1).to(before.device)
        place = torch.searchsorted(after, before).clamp_max(len(after) - 1)
        own = torch.where(after[place] == before, place, near)
        counts = torch.zeros(len(after), dtype=torch.float64, device=before.device)
        self._counts[after] = counts.index_add_(0, own, self._counts[before])


def _without(mask: Tensor | None, states: Tensor, keys: Tensor) -> Tensor:
    """Return the model's mask of a layer, without the keys that are not alive.

    Args:
        mask: None (causal) or ``[1, heads, m, S]``, bool or additive.
        states: ``[1, m, d]``: all S, or the last ones of a model that computes no others there.
        keys: ``[S]`` bool.

    Returns:
        ``[1, heads, m, S]``, additive.
    """
    length, rows = len(keys), states.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=states.device)
    allowed = square.tril()[None, None, -rows:] if mask is None else mask
    if allowed.dtype != torch.bool:
        allowed = allowed.eq(0)
    # A dropped query sees itself: nobody looks at it, and a row that sees nothing is no number.
    own = torch.eye(length, dtype=torch.bool, device=states.device)[-rows:]
    allowed = (allowed & keys) | own
    additive = torch.zeros(allowed.shape, dtype=states.dtype, device=states.device)
    return additive.masked_fill(~allowed, torch.finfo(states.dtype).min)
