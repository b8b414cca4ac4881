"""Runs the decoder from a given layer on: what a search repeats, under the very same hooks."""

from dataclasses import dataclass, field

from torch import Tensor
from transformers.masking_utils import create_causal_mask

from prunetune.runtime.apply import Handle
from prunetune.runtime.frame import Frame
from prunetune.runtime.taps import LayerTap
from prunetune.runtime.vision import VisionCapture


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
    """

    layer: int
    hidden: Tensor
    embeddings: dict[str, tuple[Tensor, Tensor]]
    position_ids: Tensor
    valid: Tensor
    image_mask: Tensor
    capture: VisionCapture
    query: Tensor
    tap: LayerTap | None = None
    injected: list[Tensor] = field(default_factory=list)
    blocks: Tensor | None = None


def run_suffix(handle: Handle, prefix: Prefix, tail: int) -> Tensor:
    """Run layers ``prefix.layer`` .. last on a batch and return the last ``tail`` slots' states.

    Left padding keeps the last slots of all rows aligned whatever was dropped, because text is
    never pruned.

    Returns:
        ``[B, tail, d]`` after the final norm.
    """
    family = handle.plan.family
    text = family.text_model
    frame = Frame(
        handle.plan,
        prefix.image_mask,
        prefix.valid,
        captures={"image": prefix.capture},
        query=prefix.query,
        memoise=True,
        blocks=prefix.blocks,
    )
    if prefix.tap is not None:
        frame.taps[prefix.layer - 1] = prefix.tap
    hidden = prefix.hidden
    kwargs = {
        "attention_mask": None,
        "position_ids": prefix.position_ids,
        "past_key_values": None,
        "use_cache": False,
    }
    if prefix.layer < handle.plan.stages[0].layer:
        padded = not bool(prefix.valid.all())
        kwargs["attention_mask"] = create_causal_mask(
            text.config,
            hidden,
            prefix.valid if padded else None,
            None,
            block_sequence_ids=prefix.blocks,
        )
    handle.frames.append(frame)
    try:
        for k, layer in enumerate(family.layers):
            if k < prefix.layer:
                continue
            rotary = prefix.embeddings[family.layer_kind(k)]
            hidden = layer(hidden, **kwargs, position_embeddings=rotary)
            if k < len(prefix.injected):
                hidden = family.inject(hidden, prefix.image_mask, prefix.injected[k])
    finally:
        handle.frames.pop()
    if frame.trace is not None:
        handle.trace.append(frame.trace)
    final: Tensor = text.norm(hidden[:, hidden.shape[1] - tail :])
    return final
