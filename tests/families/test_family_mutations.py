"""The checks of bidirectional blocks, kinds of layers and joined views can fail: planted bugs."""

from dataclasses import replace

import pytest
import test_families
import test_family_views
import test_runtime_taps
import torch
from family_models.paligemma import second
from mutants import planted, wrap
from reference import measure
from reference_models import make_batch, make_config, tiny
from test_runtime import check
from transformers.cache_utils import StaticSlidingWindowLayer

import prunetune
from prunetune.families import base
from prunetune.families.base import Family
from prunetune.families.bases import views as base_views
from prunetune.families.bases.idefics import IdeficsLike
from prunetune.families.gemma3 import Gemma3
from prunetune.families.internvl import InternVL
from prunetune.runtime.choice import taps
from prunetune.runtime.layers import cache, counted, masks
from prunetune.runtime.vision import views
from prunetune.tokens import Mosaic

# -- checks: each raises when something is wrong -------------------------------------------------


def masking(name, schedule="0+1+3"):
    model = tiny(name)
    batch, config = make_batch(model), make_config(model, schedule)
    check(measure(model, config, batch, steps=3), batch, config)


def gemma3():
    masking("gemma3")


def gemma3_late():
    masking("gemma3", "2")


def gemma3_packed():
    test_families.test_packed_positions("gemma3")


def gemma3_turns():
    test_families.test_text_after_images("gemma3", "static")


def gemma3_images():
    test_families.test_a_new_image_in_a_later_turn("gemma3")


def gemma3_taps():
    test_families.test_scorers_see_the_layer_before_the_stage("gemma3")


def paligemma():
    masking("paligemma")


def paligemma2():
    model = second()
    batch, config = make_batch(model), make_config(model, "0+1+3")
    check(measure(model, config, batch, steps=3), batch, config)


def paligemma2_taps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_runtime_taps, "tiny", lambda name, attention: second())
        test_families.test_scorers_see_the_layer_before_the_stage("paligemma")


def attention(name="internvl"):
    test_family_views.test_vision_attention_is_the_towers_own(name)


def pooled_attention():
    attention("gemma3")


def entropy():
    test_family_views.test_patch_entropy_is_that_of_the_tokens_pixels("internvl")


def places():
    test_family_views.test_places_in_the_picture("internvl", (30, 60))


def order_of_views():
    test_family_views.test_every_token_is_of_the_view_it_says("smolvlm")


def tagged_places():
    test_family_views.test_places_in_the_picture("smolvlm", (80, 26))


def blocks_of_patches():
    test_family_views.test_a_token_is_the_block_of_patches_it_says("idefics3")


def counts():
    model = tiny("internvl")
    batch, config = make_batch(model), make_config(model, "2+4")
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        model(**batch.inputs)
    test_families.test_runtime.check_counts(handle.trace[-1], batch, config)


def ragged_views():
    test_families.test_equals_masking("smolvlm", "2+4", "sdpa")


CHECKS = (
    gemma3, gemma3_late, gemma3_packed, gemma3_turns, gemma3_images, gemma3_taps, paligemma,
    paligemma2, paligemma2_taps, attention, pooled_attention, entropy, places, order_of_views,
    tagged_places, blocks_of_patches, counts, ragged_views,
)  # fmt: skip


# -- mutants: each plants one bug ----------------------------------------------------------------


def blocks_made_causal(patch):
    """What attends in both directions is carried over as if it attended backwards only."""

    def causal(original):
        def carried(mask, segment, seen, width):
            part = original(mask, segment, seen, width)
            later = segment.keys(seen, width)[:, None] > segment.tokens(seen)[..., None]
            least = False if part.dtype == torch.bool else torch.finfo(part.dtype).min
            return part.masked_fill(later[:, None], least)

        return carried

    wrap(patch, masks, "carried_over", causal)


def blocks_of_other_slots(patch):
    """Survivors see what the slots see that stand where they stand now."""

    def moved(original):
        def carried(mask, segment, seen, width):
            if segment.index is None:
                return original(mask, segment, seen, width)
            here = torch.arange(segment.index.shape[1], device=segment.index.device)
            other = replace(segment, index=here.expand_as(segment.index))
            return original(mask, other, seen, width)

        return carried

    wrap(patch, masks, "carried_over", moved)


def one_kind_of_layer(patch):
    patch.setattr(Family, "layer_kind", lambda self, layer: "sliding_attention")


def rotary_of_layer_0(patch):
    wrap(patch, Gemma3, "rotary", lambda of: lambda self, layer, *a: of(self, 2, *a))


def sliding_length_forgotten(patch):
    patch.setattr(counted.CountedStaticSlidingLayer, "get_seq_length",
                  StaticSlidingWindowLayer.get_seq_length)  # fmt: skip
    # Else it would be taken for a cropped cache, and refused.
    patch.setattr(cache.CacheState, "floor", property(lambda self: 0, lambda self, value: None))


def norm_before_the_residual(patch):
    patch.setattr(
        Family, "second_norm", lambda self, layer: self.layers[layer].post_attention_layernorm
    )


def attribute_overlooked(module, name):
    def plant(patch):
        def get(of, wanted, *default):
            return default[0] if wanted == name else getattr(of, wanted, *default)

        patch.setattr(module, "getattr", get, raising=False)

    plant.__name__ = f"{name}_overlooked"
    return plant


softcap = attribute_overlooked(taps, "attn_logit_softcapping")
query_norm = attribute_overlooked(base, "q_norm")


def patches_in_raster_order(patch):
    patch.setattr(base_views, "merged_order", lambda rows, cols, merge: torch.arange(rows * cols))


def unmerged(patch):
    patch.setattr(InternVL, "mosaics", lambda self, slots, labels, views: [Mosaic()] * len(views))


def transposed(patch):
    def mosaics(original):
        return lambda *a: [Mosaic(m.cols, m.rows) for m in original(*a)]

    for owner in (InternVL, IdeficsLike):
        wrap(patch, owner, "mosaics", mosaics)


def thumbnail_first(patch):
    """The views' order is taken for that of LLaVA-NeXT."""

    def geometry(original):
        def made(self, parts):
            whole = original(self, parts)
            return whole.select((torch.arange(len(whole)) - len(parts[0])) % len(whole))

        return made

    wrap(patch, Mosaic, "geometry", geometry)


def views_not_sorted_by_tile(patch):
    def picture(original):
        def made(mosaic, parts):
            whole = original(mosaic, parts)
            for name in ("vision_map", "patch_entropy"):
                given = [getattr(p, name) for p in parts if getattr(p, name) is not None]
                setattr(whole, name, torch.cat(given) if given else None)
            return whole

        return made

    wrap(patch, views, "_picture", picture)


def rows_for_columns(patch):
    def grid(original):
        def made(rows, cols):
            whole = original(rows, cols)
            whole.row[:], whole.col[:] = whole.col.clone(), whole.row.clone()
            return whole

        return made

    wrap(patch, base_views, "grid_geometry", grid)


def padding_taken_for_views(patch):
    patch.setattr(IdeficsLike, "real", lambda self, v: torch.ones(len(v), dtype=torch.bool))


MUTANTS = {
    blocks_made_causal: (gemma3, gemma3_late, gemma3_images, paligemma, paligemma2),
    blocks_of_other_slots: (gemma3, gemma3_late),
    one_kind_of_layer: (gemma3, gemma3_turns),
    rotary_of_layer_0: (gemma3_packed,),
    sliding_length_forgotten: (gemma3_turns,),
    norm_before_the_residual: (gemma3_taps, paligemma2_taps),
    softcap: (paligemma2_taps,),
    query_norm: (attention,),
    patches_in_raster_order: (attention, pooled_attention),
    unmerged: (counts,),
    transposed: (places, tagged_places),
    thumbnail_first: (order_of_views, attention),
    views_not_sorted_by_tile: (attention, entropy),
    rows_for_columns: (blocks_of_patches, places),
    padding_taken_for_views: (ragged_views,),
}


test_green_without_a_bug, test_red_with_a_bug = planted(CHECKS, MUTANTS)
