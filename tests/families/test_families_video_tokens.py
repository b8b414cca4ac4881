"""Which patches a token of a tiled picture or of a video is made of, and what its attention is.

The geometry is compared with the model's own path from pixels to tokens, run on one-hot features:
what comes out tells for every token which patches it was made of.
"""

import inspect
from dataclasses import replace

import family_models
import pytest
import torch
from family_models import IMAGE, each
from reference import measure, worst
from reference_models import make_batch, make_config, tiny
from test_families_video import POOLED, prompts
from test_runtime import check
from test_runtime_geometry import token_geometries
from test_runtime_taps import Probe

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.runtime.vision.tower import attention_map, attention_row

ANY_RESOLUTION = each("llava_next", "llava_next_video", "llava_onevision")
SIZES = [(20, 32), (20, 60), (30, 34), (33, 12), (32, 20), (16, 32), (90, 31), (13, 64), (200, 201)]


@torch.no_grad()
def weights(model, batch, modality):
    """Return how much of each patch of each view is in each token of a batch's only item.

    The model is of no other use afterwards.

    The projector, or the pooling in front of it, sees one-hot features; all else is the model's.

    Returns:
        ``[tokens, views, patches]``; a CLS token that reaches the projector is the first patch.
    """
    base, shape = model.model, []

    def one_hot(module, args):
        shape.extend(args[0].shape[:2])
        width = shape[0] * shape[1]
        if hasattr(base, "image_newline"):
            base.image_newline = torch.nn.Parameter(torch.zeros(width))
        return (torch.eye(width).view(*shape, width),)

    pooled = modality == "video" and hasattr(base, "vision_resampler")
    base.multi_modal_projector = torch.nn.Identity()
    first = base.vision_resampler if pooled else base.multi_modal_projector
    first.register_forward_pre_hook(one_hot)
    encode = getattr(base, f"get_{modality}_features")
    taken = inspect.signature(encode).parameters
    inputs = {k: v for k, v in batch.inputs.items() if k in taken}
    if modality == "video" and not inputs:
        inputs = {"pixel_values": batch.inputs["pixel_values_videos"]}
    packed = encode(**inputs, return_dict=True).pooler_output
    tokens = torch.cat([part.reshape(-1, shape[0] * shape[1]) for part in packed])
    # Before transformers 5.23 the newline of a LLaVA-OneVision video is added later.
    missing = sum(batch.images[0]) - len(tokens)
    return torch.nn.functional.pad(tokens, (0, 0, 0, missing)).view(-1, *shape)


def grid(model):
    vision = model.config.vision_config
    return vision.image_size // vision.patch_size


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", ANY_RESOLUTION)
def test_every_token_of_an_image_is_the_patch_it_says(family, size):
    model = tiny(family)
    batch, side = make_batch(model, ((2, size, 3),)), grid(model)
    [[geometry]] = token_geometries(model, batch)
    weight = weights(model, batch, "image")
    assert torch.equal(weight.sum((1, 2)) == 0, geometry.separator)
    patches = (~geometry.separator).nonzero().flatten()
    weight, place = weight[patches], geometry.select(patches)
    assert torch.allclose(weight.sum((1, 2)), torch.ones(len(patches)))
    assert set(place.tile_rows.tolist()) == set(place.tile_cols.tolist()) == {side}
    own = weight[torch.arange(len(patches)), place.tile, place.row * side + place.col]
    assert torch.equal(own, weight.amax((1, 2)))
    assert len(torch.stack([place.tile, place.inside], 1).unique(dim=0)) == len(place)
    # Two tiles' patches are the limit there.
    shrinks = family == "llava_onevision" and size in [(20, 60), (30, 34), (200, 201)]
    assert bool((own < 0.999).any()) == shrinks
    for tile, name in ((0, "thumbnail"), (1, "tiles")):
        view = place.select((place.tile.clamp_max(1) == tile).nonzero().flatten())
        for centre, extent in ((view.y, view.height), (view.x, view.width)):
            lines = centre.unique()
            assert torch.allclose(lines, (torch.arange(len(lines)) + 0.5) / len(lines)), name
            assert torch.allclose(extent, torch.tensor(1 / len(lines)))


@POOLED
def test_every_token_of_a_video_is_the_patches_it_says(family):
    model, spec = tiny(family), family_models.family(family)
    batch, side = make_batch(model, ((2, spec.videos[0], 3),)), grid(model)
    [[geometry]] = token_geometries(model, batch)
    weight = weights(model, batch, "video")
    weight = weight[..., weight.shape[2] - side * side :]
    assert torch.equal(weight.sum((1, 2)) == 0, geometry.separator)
    patches = (~geometry.separator).nonzero().flatten()
    weight, place = weight[patches], geometry.select(patches)
    assert torch.equal(weight.sum(2).argmax(1), place.frame)
    assert torch.equal(place.tile, place.frame)
    weight = weight.sum(1).view(-1, side, side)
    centres = (torch.arange(side) + 0.5) / side
    assert torch.allclose(weight.sum(2) @ centres, place.y, atol=1e-6)
    assert torch.allclose(weight.sum(1) @ centres, place.x, atol=1e-6)
    assert torch.allclose((place.row + 0.5) / place.tile_rows, place.y, atol=1e-6)
    assert torch.allclose((place.col + 0.5) / place.tile_cols, place.x, atol=1e-6)


@torch.no_grad()
def test_several_images_of_a_prompt_are_one_view_each():
    """As LLaVA-OneVision's processor says with ``batch_num_images``; then none is tiled."""
    model = tiny("llava_onevision")
    batch = make_batch(model, ((2, (20, 60), 1), (1, (20, 60), 2, (33, 12), 1)))
    side = grid(model)
    one, *several = [p for row in batch.pieces for p in row if p.count]
    several = [replace(p, ids=[IMAGE] * (side**2 + 1), count=side**2 + 1) for p in several]
    spec = family_models.family(model)
    text = family_models.Piece([4, 5])
    batch = spec.assemble(model, [[one, text], [several[0], text, several[1], text]])
    batch.inputs["batch_num_images"] = torch.tensor([1, 2])
    config = make_config(model, [(0, 0.6, ("cls_attention",)), (3, 0.3, ())])
    check(measure(model, config, batch, steps=3), batch, config)
    [[tiled], plain] = token_geometries(model, batch)
    assert tiled.tile.max() > 1
    for geometry in plain:
        assert geometry.tile.eq(0).all()
        assert geometry.separator.tolist() == [False] * side**2 + [True]
        assert torch.equal(geometry.inside[:-1], torch.arange(side**2))


@POOLED
@torch.no_grad()
def test_attention_of_a_video_is_pooled_as_its_features_are(family):
    """Against eager attention weights and torch's own pooling."""
    model, plain = tiny(family), tiny(family, "eager")
    spec, side = family_models.family(family), grid(model)
    Probe.seen.clear()
    batch = make_batch(model, ((2, spec.videos[0], 3),))
    with prunetune.apply(model, make_config(model, [(1, 0.5, (Probe(),))])):
        model(**batch.inputs)
    [context] = Probe.seen
    base = plain.model
    tower = base.video_tower if hasattr(base, "video_tower") else base.vision_tower
    layers = tower(batch.inputs["pixel_values_videos"][0], output_attentions=True).attentions
    layer = plain.config.vision_feature_layer
    # hidden_states[-2] is the output of the last layer but one.
    map_ = layers[layer].mean(1)
    cls = map_.shape[1] > side**2
    row = (map_[:, 0, 1:] if cls else map_.mean(1)).view(-1, 1, side, side)
    if family == "llava_next_video":
        row = torch.nn.functional.avg_pool2d(row, 2) * 4
    elif family == "llava_onevision":
        small = [-(-side // 2)] * 2
        row = torch.nn.functional.interpolate(row, small, mode="bilinear") * side**2 / small[0] ** 2
    assert worst(context.vision_attention, row.flatten()) < 1e-6


@torch.no_grad()
def test_pooled_maps_keep_their_mass():
    """What patches give and receive in all is what tokens do."""
    from prunetune.families.bases.anyres import pooling_matrix
    from prunetune.runtime.vision.tower import _pooled

    query, key = torch.randn(2, 2, 4, 36, 8, generator=torch.Generator().manual_seed(0))
    full = attention_map(query, key, cls=False)
    pool = pooling_matrix(6, 6, "average", (3, 3))
    assert torch.allclose(pool.sum(1), torch.ones(9))
    small = pool @ _pooled(full, pool)
    assert torch.allclose(small.sum(2), torch.ones(2, 9))
    by_hand = full.view(2, 3, 2, 3, 2, 3, 2, 3, 2).sum((6, 8)).mean((2, 4)).view(2, 9, 9)
    assert torch.allclose(small, by_hand, atol=1e-6)
    row = _pooled(attention_row(query, key, cls=False), pool)
    assert torch.allclose(row, small.mean(1), atol=1e-6)


@torch.no_grad()
def test_fastervlm_on_videos():
    """Of every frame the same number of patches, by the video tower's CLS attention; no CLS."""
    model, plain = tiny("video_llava"), tiny("video_llava", "eager")
    batch = make_batch(model, ((2, (4, 16, 16), 3),))
    scorer = {"name": "cls_attention", "per_crop": True}
    config = make_config(model, [(0, 20 / 68, (scorer,))], "drop", "packed")
    with prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        trace = handle.trace[-1]
    pixels = batch.inputs["pixel_values_videos"][0]
    tower = plain.model.video_tower
    attention = tower(pixels, output_attentions=True).attentions[-2].mean(1)[:, 0, 1:]
    best = attention.topk(5).indices.sort().values
    by_hand = (torch.arange(4)[:, None] * 17 + 1 + best).flatten()
    assert torch.equal(trace.stages[0].kept[0] - trace.image_slots[0][0], by_hand)


def test_pooling_that_leaves_patches_over_is_refused():
    model = tiny("llava_next_video")
    model.config.spatial_pool_stride = 3
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*spatial_pool_stride 3[^\n]*\Z"):
        prunetune.apply(model, make_config(model))


@pytest.mark.parametrize("mode", ["max", "conv"])
@torch.no_grad()
def test_other_poolings(mode):
    """They make other features of the same grid."""
    model = tiny("llava_next_video")
    model.config.spatial_pool_mode = mode
    model.model.vision_resampler = type(model.model.vision_resampler)(model.config)
    batch = make_batch(model, prompts("llava_next_video"))
    config = make_config(model, [(0, 0.6, ("cls_attention",)), (3, 0.3, ())])
    check(measure(model, config, batch, steps=2), batch, config)


@pytest.mark.parametrize("separators", ["keep", "drop"])
@torch.no_grad()
def test_cls_tokens_of_images_and_several_feature_layers(separators):
    """Video-LLaVA with ``full`` passes an image's CLS token on, as it does a frame's anyway."""
    model = tiny("video_llava")
    spec = family_models.family(model)
    pieces = [row[:] for row in make_batch(model).pieces]
    for row in pieces:
        for i, piece in enumerate(row):
            if piece.ids[0] == IMAGE:
                row[i] = replace(piece, ids=[IMAGE] * 17, count=17)
    model.config.vision_feature_select_strategy = "full"
    batch = spec.assemble(model, pieces)
    config = make_config(model, [(0, 0.5, ("cls_attention",)), (2, 0.3, ())], separators)
    check(measure(model, config, batch, steps=2), batch, config)
    [geometry, _], *_ = token_geometries(model, batch)
    assert geometry.separator.tolist() == [True] + [False] * 16
