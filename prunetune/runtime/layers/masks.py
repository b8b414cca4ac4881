"""The attention masks of layers that hold unequal numbers of tokens."""

from typing import Any

from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.families.base_configs import text_window
from prunetune.release import causal_mask, unsupported
from prunetune.runtime.layers.cache import CacheView
from prunetune.runtime.layers.mass import biased
from prunetune.runtime.layers.segment import Segment
from prunetune.runtime.layers.sight import Sight, carried_over
from prunetune.runtime.layers.widened import WIDENED, KeyBias


def segment_mask(
    config: Any,
    hidden: Tensor,
    segment: Segment,
    own: Any,
    cache: Any,
    layer: int,
    seen: int,
    length: int,
) -> tuple[Any, KeyBias | None]:
    """Return the mask of those of a segment's layers that are of the kind of ``layer``.

    And the bias of their keys, where their attention takes it beside the mask instead of in it.

    Args:
        config: Of the text model.
        hidden: ``[B, m, d]`` states entering the layer.
        segment: The segment.
        own: What the model made for them, over the whole sequence; None: all tokens are real and
            attend to all before them.
        cache: The forward's cache, or None.
        layer: 0-based.
        seen: Tokens of the sequence before this forward.
        length: Slots of this forward's input.

    Raises:
        UnsupportedModelError: The model's mask is of another length than the sequence, or the
            attention implementation takes no mask.
    """
    view = None if cache is None else CacheView(cache)
    width = hidden.shape[1] if view is None else view.get_mask_sizes(hidden.shape[1], layer)[0]
    mask = _plain_mask(config, hidden, segment, own, view, layer, seen, length, width)
    bias = segment.key_bias(width)
    if bias is None:
        return mask, None
    implementation = getattr(config, "_attn_implementation", None)
    if implementation in WIDENED:
        return mask, KeyBias(bias)
    return biased(mask, bias, hidden, implementation), None


def state_mask(segment: Segment, own: Any, sight: Sight | None, seen: int) -> Tensor | None:
    """Return the mask of those of a segment's layers that carry a state along the sequence.

    Args:
        segment: The segment.
        own: What the model made for them: ``[B, S]`` of this forward's slots, 0 at padding; None:
            there is none.
        sight: Which tokens see which, where that is more than "all real ones before".
        seen: Tokens of the sequence before this forward.

    Returns:
        ``[B, m]`` bool, False at padding; None: there is none.

    Raises:
        UnsupportedModelError: Padding would stand between a state and what goes on from it, or
            tokens of several samples behind one another.
    """
    if sight is not None:
        raise UnsupportedModelError(
            "a row holds several samples, or a 4-D mask hides some tokens from others, and this "
            "model's states run over all of a row; pass one sample a row and a 2-D attention_mask"
        )
    if segment.index is None:
        return own if own is not None or not segment.padded else segment.valid
    if not segment.padded:
        return None
    if seen:
        raise UnsupportedModelError(
            "pictures of a later turn leave the rows of a batch unequally long, and padding would "
            "run through the states of this model; continue with batches of one"
        )
    return segment.valid


def _plain_mask(
    config: Any,
    hidden: Tensor,
    segment: Segment,
    own: Any,
    view: CacheView | None,
    layer: int,
    seen: int,
    length: int,
    width: int,
) -> Any:
    if isinstance(own, Tensor) and own.dim() in (2, 4):
        if segment.in_place:
            return own
        total = seen + length
        static = view is not None and view.static
        if own.shape[-1] == total or (static and own.shape[-1] > total):
            return carried_over(own, segment, seen, width)
        # A static cache whose first layers were made as short as a stage leaves them.
        if not static:
            raise unsupported(f"its mask is over {own.shape[-1]} keys of a sequence of {total}")
    real = segment.real_keys()
    mask = causal_mask(config, hidden, real, view, layer=layer)
    if real is not None and mask is None:
        raise UnsupportedModelError(
            f"attention {getattr(config, '_attn_implementation', None)!r} takes no mask, so that "
            "rows which keep unequal numbers of tokens cannot stand in one batch; use sdpa, eager "
            "or flash_attention_2, or batches of one"
        )
    return mask


def check_window(config: Any, total: int) -> None:
    """Raise if ``total`` tokens exceed the sliding window of a text model's config."""
    window = text_window(config)
    if window is not None and total > window:
        raise UnsupportedModelError(
            f"sequence of {total} tokens exceeds the model's sliding window of "
            f"{window}: its cache would window over compacted slots and decode wrongly; use "
            "shorter prompts or a checkpoint without a sliding window"
        )
