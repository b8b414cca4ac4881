"""The checks can fail: planted bugs in the runtime turn them red."""

import test_runtime
import test_runtime_generate
import test_runtime_removal
import test_runtime_restorers
import test_runtime_turns
import torch
from mutants import planted, wrap
from reference import measure
from reference_models import make_batch, make_config, tiny

from prunetune.runtime import frame, leave
from prunetune.runtime.apply import Handle
from prunetune.runtime.choice import choose
from prunetune.runtime.frame import Frame
from prunetune.runtime.layers.cache import CacheState, CacheView
from prunetune.runtime.layers.segment import Held, Segment
from prunetune.runtime.vision import images
from prunetune.runtime.vision.tower import VisionCapture
from prunetune.tokens import left_pad

# -- checks: each raises when something is wrong -------------------------------------------------


def greedy(schedule="0+1+3", positions="original", attention="sdpa"):
    model = tiny("llava", attention)
    batch, config = make_batch(model), make_config(model, schedule, positions=positions)
    test_runtime.check(measure(model, config, batch, steps=4), batch, config)


def packed():
    greedy("0", "packed")


def late():
    greedy("2+4")


def turns():
    test_runtime_turns.test_text_after_images("llava", "0+1+3", "original", "dynamic")


def later_images():
    test_runtime_turns.test_a_new_image_in_a_later_turn("llava", "0+1+3", "original", "dynamic")


def counts():
    test_runtime.test_trace_counts("llava_next", "0+1+3", "keep")


def rows():
    test_runtime.test_a_row_alone_equals_its_row_in_the_batch("llava", "0")


def no_cache():
    test_runtime_generate.test_no_cache_repeats_the_prefill_with_the_same_keep_indices()


def blending():
    probe = (test_runtime_restorers.Probe(),)
    test_runtime_restorers.check_restorer("llava", 2, "blend", probe)


def identity():
    test_runtime_removal.test_keeping_everything_is_the_identity("llava", "sdpa", "original")


def removal():
    test_runtime_removal.test_leaves_the_model_as_found("llava", "with")


CHECKS = (
    greedy,
    packed,
    late,
    turns,
    later_images,
    counts,
    rows,
    no_cache,
    blending,
    identity,
    removal,
)


# -- mutants: each plants one bug ----------------------------------------------------------------


def renumbered_positions(patch):
    """Survivors are numbered from 0, as if nothing had been dropped."""

    def rotary(self, index, hidden, own):
        full = (len(hidden), -1, -1)
        return tuple(e.expand(full)[:, : hidden.shape[1]] for e in own.rotary)

    patch.setattr(Frame, "_rotary", rotary)


def unsorted_keep_index(patch):
    patch.setattr(frame, "left_pad", lambda rows: left_pad([row.flip(0) for row in rows]))


def padded_on_the_right(patch):
    """Ragged rows are moved to the left, but counted as if they stood on the right."""

    def padded(rows):
        index, valid = left_pad(rows)
        moved = [torch.nn.functional.pad(r, (0, index.shape[1] - len(r))) for r in rows]
        return torch.stack(moved), valid

    patch.setattr(frame, "left_pad", padded)


def a_layer_late(patch):
    wrap(
        patch, Frame, "enter",
        lambda enter: lambda self, index, *a: enter(self, max(0, index - 1), *a),
    )  # fmt: skip


def unmasked_ragged_pads(patch):
    """No row and no column of a mask is hidden because a shorter row has nothing there."""
    patch.setattr(Segment, "real_keys", lambda self: None)

    def seen(original):
        def tokens(self, past):
            found = original(self, past)
            return torch.where(found < 0, found.amax(1, keepdim=True), found)

        return tokens

    wrap(patch, Segment, "tokens", seen)


def pads_forgotten_when_decoding(patch):
    """What shorter rows have in place of tokens is taken for the last token."""

    def rows(original):
        def held(self, stage, batch):
            right = original(self, stage, batch)
            if right.slots is None:
                return right
            last = right.slots.amax(1, keepdim=True)
            return Held(torch.where(right.slots < 0, last, right.slots), right.behind)

        return held

    wrap(patch, CacheState, "rows", rows)


def mask_columns_shifted(patch):
    def shifted(original):
        return lambda *a: original(*a).roll(1, 1)

    wrap(patch, Segment, "keys", shifted)


def decode_mask_of_layer_0(patch):
    for name in ("get_query_offset", "get_mask_sizes"):
        wrap(patch, CacheView, name, lambda of: lambda self, *a, **k: of(self, *a[:-1], 0))


def wrong_rows_gathered(patch):
    wrap(patch, frame, "places", lambda places: lambda *a, **k: places(*a, **k).roll(1, 0))


def neighbours_gathered(patch):
    wrap(patch, frame, "places", lambda places: lambda *a, **k: places(*a, **k).roll(1, 1))


def stale_cache_slots(patch):
    """A second turn over a pruned cache leaves what is known of the first turn in place."""

    def finish(original):
        return lambda self: None if self.state is not None else original(self)

    wrap(patch, Frame, "finish", finish)


def slots_of_another_stage(patch):
    def rows(original):
        return lambda self, stage, batch: original(self, 0, batch)

    wrap(patch, CacheState, "rows", rows)


def logical_length_forgotten(patch):
    patch.setattr(leave, "count_dropped", lambda *args, **options: None)
    # Else it would be seen: masks as long as the cache, positions that count it.
    patch.setattr(frame, "check_position", lambda *args, **options: None)
    # Else it would be taken for a cropped cache, and refused.
    patch.setattr(CacheState, "floor", property(lambda self: 0, lambda self, value: None))


def shift_forgotten(patch):
    patch.setattr(CacheState, "shifts", lambda self, batch: None)


def one_token_too_many(patch):
    wrap(
        patch,
        choose,
        "keep_count",
        lambda count: lambda n, r, alive: min(alive, count(n, r, alive) + 1),
    )


def rounded_down(patch):
    patch.setattr(choose, "keep_count", lambda n, r, alive: max(1, min(alive, int(r * n))))


def images_of_other_rows(patch):
    wrap(patch, images, "spread_images", lambda spread: lambda rows, n: _reversed(spread(rows, n)))


def _reversed(rows):
    flat = iter([image for row in rows for image in row][::-1])
    return [[next(flat) for _ in row] for row in rows]


def output_scattered_one_off(patch):
    wrap(patch, frame, "of_last_survivors", lambda of: lambda *a: of(*a).roll(1, 1))


def chosen_anew_without_a_cache(patch):
    patch.setattr(VisionCapture, "repeats", lambda self, input_ids: False)


def blend_lost(patch):
    wrap(patch, frame, "choose", lambda choosing: lambda *a, **k: choosing(*a, **k)[:0])


def a_hook_left_behind(patch):
    def remove(original):
        def removed(self):
            self._hooks[-1:] = []
            original(self)

        return removed

    wrap(patch, Handle, "remove", remove)


def encoder_left_wrapped(patch):
    def remove(original):
        def removed(self):
            base = self.plan.family.base
            wrapped = base.get_image_features
            original(self)
            base.get_image_features = wrapped

        return removed

    wrap(patch, Handle, "remove", remove)


MUTANTS = {
    renumbered_positions: (greedy, late),
    unsorted_keep_index: (greedy, late),
    padded_on_the_right: (greedy, late),
    a_layer_late: (greedy, late),
    unmasked_ragged_pads: (greedy, late, packed),
    pads_forgotten_when_decoding: (greedy, late, turns),
    mask_columns_shifted: (greedy, late),
    decode_mask_of_layer_0: (greedy, late),
    wrong_rows_gathered: (greedy, late),
    neighbours_gathered: (greedy, late),
    stale_cache_slots: (later_images,),
    slots_of_another_stage: (greedy, late),
    logical_length_forgotten: (turns,),
    shift_forgotten: (packed,),
    one_token_too_many: (counts, greedy),
    rounded_down: (counts,),
    images_of_other_rows: (rows,),
    output_scattered_one_off: (greedy, late),
    chosen_anew_without_a_cache: (no_cache,),
    blend_lost: (blending,),
    a_hook_left_behind: (removal,),
    encoder_left_wrapped: (removal,),
}


test_green_without_a_bug, test_red_with_a_bug = planted(CHECKS, MUTANTS)
