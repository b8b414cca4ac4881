"""Runs the decoder from a given layer on: what a search repeats, under the very same hooks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunetune.families.base_configs import text_window, window_shape
from prunetune.masking import causal_mask
from prunetune.release import Told, layer_arguments
from prunetune.runtime.apply import Handle
from prunetune.runtime.choice.taps import LayerTap
from prunetune.runtime.frame import Frame
from prunetune.runtime.vision.forward import Forward
from prunetune.runtime.vision.tower import VisionCapture


@dataclass
class Branches:
    """Prompts that share a row: each goes on behind the pictures, and sees none of the others.

    Attributes:
        mask: ``[B, 1, S, S]`` bool, query by key.
        row: ``[n]`` int64, the row of each prompt.
        behind: ``[n]`` int64, tokens of its row behind its last one. Text is never pruned, so
            that counted from the end a token stays where it is.
    """

    mask: Tensor
    row: Tensor
    behind: Tensor

    def last(self, hidden: Tensor, tail: int) -> Tensor:
        """Return the states ``[n, tail, d]`` of each prompt's last slots, of ``[B, m, d]``."""
        back = torch.arange(tail - 1, -1, -1, device=hidden.device) + self.behind[:, None]
        return hidden[self.row[:, None], (hidden.shape[1] - 1 - back).clamp_min(0)]


@dataclass
class Prefix:
    """A batch of prompts as it enters decoder layer ``layer``, unpruned.

    Attributes:
        layer: 0-based.
        hidden: ``[B, S, d]`` states entering it.
        embeddings: Rotary cos and sin, ``[B, S, head_dim]``, by kind of layer.
        position_ids: ``[B, S]`` int64.
        valid: ``[B, S]`` bool, False at left padding.
        image_mask: ``[B, S]`` bool, True at image tokens.
        capture: Of the batch's images.
        query: ``[B]`` int64, slot of each prompt's last token.
        tap: Of layer ``layer - 1``, for a stage right at ``layer``.
        injected: What the text model adds behind its first layers, see ``Family.injected``.
        blocks: Which tokens attend in both directions, see ``Family.blocks``.
        branches: Where rows hold several prompts each; no scorer may ask for ``query`` then.
    """

    layer: int
    hidden: Tensor
    embeddings: dict[str, tuple[Tensor, ...]]
    position_ids: Tensor
    valid: Tensor
    image_mask: Tensor
    capture: VisionCapture
    query: Tensor
    tap: LayerTap | None = None
    injected: list[Tensor] = field(default_factory=list)
    blocks: Tensor | None = None
    branches: Branches | None = None


def run_suffix(handle: Handle, prefix: Prefix, tail: int) -> Tensor:
    """Run layers ``prefix.layer`` .. last on a batch and return the last ``tail`` slots' states.

    Left padding keeps the last slots of all rows aligned whatever was dropped, because text is
    never pruned.

    Returns:
        ``[B, tail, d]`` after the final norm; ``[n, tail, d]``, of each prompt, where rows branch.
    """
    family = handle.plan.family
    forward = Forward(
        image_mask=prefix.image_mask,
        mask=prefix.valid,
        captures={"image": prefix.capture},
        query=prefix.query,
        memoise=True,
    )
    frame = Frame(handle.plan, forward)
    if prefix.tap is not None:
        frame.taps[prefix.layer - 1] = prefix.tap
    hidden, branches = prefix.hidden, prefix.branches
    masks = _masks(handle, prefix)
    handle.frames.append(frame)
    try:
        norm = family.second_norm(len(family.layers) - 1)
        shorter = branches is None and family.broadcasts
        with _last_slot_only(norm, tail) if shorter else nullcontext():
            for k, layer in enumerate(family.layers):
                if k < prefix.layer:
                    continue
                kind = family.layer_kind(k)
                given = masks.get(kind), prefix.embeddings[kind], prefix.position_ids
                told = layer_arguments(Told(*given, complex=family.complex_rotary))
                hidden = layer(hidden, **told)
                if k < len(prefix.injected):
                    hidden = family.inject(hidden, prefix.image_mask, prefix.injected[k])
    finally:
        handle.frames.pop()
    if frame.trace is not None:
        handle.trace.append(frame.trace)
    last = hidden[:, hidden.shape[1] - tail :] if branches is None else branches.last(hidden, tail)
    final: Tensor = family.final_norm(last)
    return final


def _masks(handle: Handle, prefix: Prefix) -> dict[str, Any]:
    """Return the masks over the unpruned batch, by kind of layer; none where nothing asks."""
    family = handle.plan.family
    config, hidden = family.text_model.config, prefix.hidden
    kinds = {family.layer_kind(k) for k in range(len(family.layers))}
    if prefix.branches is not None:
        return dict.fromkeys(kinds, prefix.branches.mask)
    window = text_window(config)
    cut = window is not None and hidden.shape[1] > window
    if not cut and prefix.layer >= handle.plan.stages[0].layer and prefix.blocks is None:
        return {}
    valid = None if bool(prefix.valid.all()) else prefix.valid
    return {
        kind: causal_mask(
            config, hidden, valid, None, blocks=prefix.blocks, window=window_shape(config, kind)
        )
        for kind in kinds
    }


@contextmanager
def _last_slot_only(norm: nn.Module, tail: int) -> Iterator[None]:
    """Keep the last layer's MLP from computing what nobody reads.

    It gets the last slot alone, ``[B, 1, d]``, and what it returns is broadcast over the residual
    stream: right at the last slot, meaningless before it.
    """
    if tail != 1:
        yield
        return
    hook = norm.register_forward_pre_hook(lambda module, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def run_whole(handle: Handle, inputs: Mapping[str, Any], query: Tensor, tail: int) -> Tensor:
    """Run the whole model on a batch, where no part of it can be started from stored states.

    Args:
        handle: The applied config.
        inputs: Of the base model's forward.
        query: ``[B]`` int64, slot of each prompt's last token.
        tail: Last slots wanted.

    Returns:
        ``[B, tail, d]`` after the final norm.
    """
    family = handle.plan.family

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.frames[-1].call.query = query

    hook = family.base.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        states, _ = family.final_states({**inputs, "use_cache": False})
    finally:
        hook.remove()
    return states[:, -tail:]
