"""The attention masks of layers that hold unequal numbers of tokens."""

from typing import Any

from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.families.base_configs import layer_window, text_window
from prunetune.masking import causal_mask
from prunetune.release import unsupported
from prunetune.runtime.layers.cache import CacheView
from prunetune.runtime.layers.mass import KERNELS, biased
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
    kind: str = "",
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
        kind: Of the layer.

    Raises:
        UnsupportedModelError: The model's mask is of another length than the sequence, or the
            attention implementation takes no mask.
    """
    view = None if cache is None else CacheView(cache)
    width = hidden.shape[1] if view is None else view.get_mask_sizes(hidden.shape[1], layer)[0]
    window = layer_window(config, kind)
    mask = _plain_mask(config, hidden, segment, own, view, layer, seen, length, width, window)
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
    window: int | None,
) -> Any:
    total = seen + length
    if isinstance(own, Tensor) and own.dim() in (2, 4):
        if segment.in_place:
            return own
        if window is not None and total > own.shape[-1] == window - 1 + length:
            # Over the last tokens of the sequence: what the window of this forward's first reaches.
            return carried_over(own, segment, seen, width, total - own.shape[-1])
        static = view is not None and view.static and (window is None or total <= window)
        if own.shape[-1] == total or (static and own.shape[-1] > total):
            return carried_over(own, segment, seen, width)
        # A static cache whose first layers were made as short as a stage leaves them.
        if not static:
            raise unsupported(f"its mask is over {own.shape[-1]} keys of a sequence of {total}")
    elif window is not None and total > window and not segment.in_place:
        raise unsupported(f"it made no mask of a window of {window} for {total} tokens")
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
    """Raise if ``total`` tokens exceed a window that only a mask could count in.

    Raises:
        UnsupportedModelError: The attention takes no mask of every query and key.
    """
    implementation = getattr(config, "_attn_implementation", None)
    window = text_window(config)
    if window is not None and total > window and implementation not in KERNELS:
        raise UnsupportedModelError(
            f"sequence of {total} tokens exceeds the model's sliding window of {window}, and "
            f"attention {implementation!r} would count it over the tokens that are left; load the "
            f"model with attn_implementation {' or '.join(KERNELS)}, or use shorter prompts"
        )
