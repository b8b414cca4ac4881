"""What a forward leaves on a cache for those that follow."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunetune.runtime.choice.plan import Plan
from prunetune.runtime.layers.cache import STATE, CacheState, count_dropped, follow_rows
from prunetune.runtime.layers.segment import Held, Segment
from prunetune.runtime.promises import check_lengths, last_position


def leave(
    plan: Plan,
    cache: Any,
    state: CacheState | None,
    segments: Sequence[Segment],
    valid: Tensor,
    alive: Tensor | None,
    positions: Tensor | None,
    shift: Tensor | None,
    past: int,
    asked: int | None = None,
) -> None:
    """Leave on a cache what later forwards over it need.

    Args:
        plan: The config, resolved for the model.
        cache: The cache that the forward has grown.
        state: What earlier ones have left on it; None: nothing.
        segments: Of the forward, one a stage.
        valid: ``[B, S]`` bool, the forward's real tokens.
        alive: ``[B, S]`` bool, those that no stage has dropped; None: it brought no images.
        positions: What the text model was given as positions.
        shift: ``[B, S]`` int64, how many tokens before each one were dropped at layer 0; None:
            positions have gaps.
        past: Tokens of the sequence before the forward.
        asked: Slots of the forward up to the question that its images were chosen by; 0: there
            was none; None: the config does not ask, or the forward has no images.

    Raises:
        ConfigError: Images were chosen by an empty question, and the question comes now.
        UnsupportedModelError: The cache is not as long as the stages promise, or of a kind that
            cannot keep the sequence's length.
    """
    length = valid.shape[1]
    total = past + length
    if asked is None and state is not None:
        state.check_asked(past)
    if state is None:
        state = CacheState(plan.digest, [Held() for _ in plan.stages])
        setattr(cache, STATE, state)
    state.held = [segment.after(past, length) for segment in segments]
    state.position = last_position(positions, valid)
    state.reached = total
    state.note_asked(past, asked)
    if alive is not None:
        check_lengths(cache, plan.lengths(segments, total))
        gone = (valid & ~alive).any(0).nonzero()
        if len(gone):
            state.floor = past + int(gone[-1]) + 1
        if shift is not None:
            own, old = shift[:, -1], state.shifts(len(shift))
            state.shift = own if old is None else old.to(own.device) + own
        count_dropped(cache, plan.first_of_kinds, total)
    follow_rows(cache, state)
