"""Qwen-VL: where tokens come from and what the tower tells, against the models' own code."""

import importlib

import numpy as np
import pytest
import torch
from family_models import IMAGE, VIDEO, each, family
from family_models._qwen import CELL, PATCH
from PIL import Image
from reference import worst
from reference_models import make_batch, make_config, tiny

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.families import FAMILIES as TABLE
from prunetune.families import VisionCall
from prunetune.runtime.vision.tower import VisionTap, patch_entropy

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
every = pytest.mark.parametrize("name", each(*QWEN))
# Qwen2.5's tower sorts most of these by windows, some of which are cut off.
ITEMS = [(24, 32), (16, 16), (8, 40), (56, 24), (4, 24, 32), (6, 16, 40)]
IMAGES = ((3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3), ((40, 24), 5, (24, 32), 6))
VIDEOS = ((1, (4, 24, 40), 2), ((6, 16, 40), 3))


def view(model):
    return TABLE.get(model.config.model_type)(model)


def call_of(batch, modality):
    names = {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }
    lengths = [n for row in batch.images for n in row]
    return VisionCall({n: batch.inputs[n] for n in names[modality]}, lengths, modality)


def encode(model, call, modality):
    encoder = getattr(model.model, f"get_{modality}_features")
    return encoder(*call.arguments.values(), return_dict=True).pooler_output


# -- geometry ------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_rows_and_columns_are_the_rotary_positions(name, item):
    """``get_rope_index`` is the model's own account of where a token is."""
    model = tiny(name)
    batch = make_batch(model, ((2, item, 3),))
    modality, placeholder = ("video", VIDEO) if len(item) == 3 else ("image", IMAGE)
    [geometry] = view(model).geometries(call_of(batch, modality))
    slots = (batch.inputs["input_ids"][0] == placeholder).nonzero().flatten()
    position = family(name).explicit_positions(model, batch.inputs)["position_ids"][1:, 0, slots]
    frames = item[0] // 2 if modality == "video" else 1
    size = len(slots) // frames
    assert (slots.diff() > 1).sum() == (frames - 1 if name in ("qwen3_vl", "qwen3_5") else 0)
    for frame in range(frames):
        own = slice(frame * size, (frame + 1) * size)
        time, row, col = position[:, own]
        assert (geometry.tile[own] == frame).all()
        assert (geometry.frame[own] == frame).all()
        assert torch.equal(row - row[0], geometry.row[own])
        assert torch.equal(col - col[0], geometry.col[own])
        assert (time == time[0]).all()
    assert (geometry.tile_rows == item[-2] // CELL).all()
    assert (geometry.tile_cols == item[-1] // CELL).all()
    assert torch.equal(geometry.y, (geometry.row + 0.5) / (item[-2] // CELL))
    assert torch.equal(geometry.x, (geometry.col + 0.5) / (item[-1] // CELL))


def test_columns_for_rows_would_be_noticed(monkeypatch):
    base = TABLE.get("qwen2_vl").__mro__[1]
    geometries = base.geometries

    def transposed(self, call):
        found = geometries(self, call)
        for g in found:
            order = torch.argsort(g.col * 100 + g.row)
            g.row.copy_(g.row[order])
            g.col.copy_(g.col[order])
        return found

    monkeypatch.setattr(base, "geometries", transposed)
    with pytest.raises(AssertionError):
        test_rows_and_columns_are_the_rotary_positions("qwen2_vl", (24, 32))


# -- pixels --------------------------------------------------------------------------------------


def processed(model, picture):
    """Return the encoder call of a picture of 3 x 5 cells, by the real image processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    mean, std = view(model).pixel_statistics()
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2, image_mean=mean, image_std=std,
        size={"shortest_edge": CELL**2, "longest_edge": 64 * CELL**2},
    )  # fmt: skip
    inputs = processor(Image.fromarray(picture), return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 10]]
    return VisionCall(dict(inputs), [15])


@every
def test_a_token_is_the_cell_of_the_picture_that_it_says(name):
    """Change one cell of a picture: only the patches of the token of that row and column change."""
    model = tiny(name)
    before = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    after = before.copy()
    after[16:24, 8:16] = 255 - after[16:24, 8:16]
    one, two = (processed(model, picture) for picture in (before, after))
    patches = (one.arguments["pixel_values"] != two.arguments["pixel_values"]).any(1)
    [token] = (patches.nonzero().flatten() // 4).unique().tolist()
    [geometry] = view(model).geometries(one)
    assert (int(geometry.row[token]), int(geometry.col[token])) == (2, 1)
    moved = (view(model).pixels(one)[0] != view(model).pixels(two)[0]).any(1)[0]
    assert moved[16:24, 16:32].all()
    moved[16:24, 16:32] = False
    assert not moved.any()


@every
def test_the_entropy_is_that_of_the_picture(name):
    """An image's two moments are the same, so that a cell of both has the entropy of one."""
    model = tiny(name)
    picture = np.random.default_rng(0).integers(0, 9, (24, 40, 3), dtype=np.uint8)
    [pixels] = view(model).pixels(processed(model, picture))
    measured = patch_entropy(pixels, 3, 5, *view(model).pixel_statistics())[0]
    grey = np.round(picture.astype(float).mean(2)).astype(int)
    expected = []
    for row in range(0, 24, 8):
        for col in range(0, 40, 8):
            _, counts = np.unique(grey[row : row + 8, col : col + 8], return_counts=True)
            expected.append(-(counts / 64 * np.log2(counts / 64)).sum())
    assert measured.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_videos_cell_holds_both_moments():
    model = tiny("qwen2_vl")
    batch = make_batch(model, ((1, (4, 16, 24), 2),))
    call = call_of(batch, "video")
    [pixels] = view(model).pixels(call)
    assert pixels.shape == (2, 3, 16, 48)
    cell = pixels[1, :, 8:16, 16:32]
    token = call.arguments["pixel_values_videos"][(6 + 3 + 1) * 4 :][:4]
    assert torch.equal(cell.flatten().sort().values, token.flatten().sort().values)


# -- the tower's attention -----------------------------------------------------------------------


@torch.no_grad()
def eager_weights(model, batch, modality, patch):
    """Return an eager tower's weights of its last block, ``[tokens, tokens]`` a frame, head mean.

    In raster order: the place of each patch is told by the rotary position that it was given.
    """
    visual, got, told = model.model.visual, [], {}
    code = importlib.import_module(type(model).__module__)
    block, eager = visual.blocks[-1].attn, code.eager_attention_forward

    def recorded(module, query, key, value, attention_mask, **options):
        output, weights = eager(module, query, key, value, attention_mask, **options)
        if module is block:
            got.append(weights[0].mean(0))
        return output, weights

    hook = block.register_forward_pre_hook(
        lambda m, a, kwargs: told.update(kwargs), with_kwargs=True
    )
    patch.setattr(code, "eager_attention_forward", recorded)
    call = call_of(batch, modality)
    encode(model, call, modality)
    hook.remove()
    result, first = [], 0
    grids = call.arguments[f"{modality}_grid_thw"].tolist()
    frames = [grid[1:] for grid in grids for _ in range(grid[0])]
    for (height, width), weights in zip(frames, got, strict=True):
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        angles, _ = visual.rotary_pos_emb(torch.zeros(1), places)
        given = told["position_embeddings"][0][first : first + len(places)]
        row, col = places[(given[:, None] - angles).abs().amax(2).argmin(1)].T
        token = row // 2 * (width // 2) + col // 2
        assert (token.bincount() == 4).all()
        member = torch.nn.functional.one_hot(token).float()
        result.append(member.T @ weights @ member / 4)
        first += len(places)
    return result


@every
@pytest.mark.parametrize(("modality", "rows"), [("image", IMAGES), ("video", VIDEOS)])
@torch.no_grad()
def test_attention_is_the_eager_towers(name, modality, rows, monkeypatch):
    """Several images (or frames) of unequal sizes in one call."""
    model, plain = tiny(name), tiny(name, "eager")
    batch = make_batch(model, rows)
    expected = eager_weights(plain, batch, modality, monkeypatch)
    tap = VisionTap(view(model), frozenset({"vision_attention", "vision_map"}))
    hooks, call = tap.install(), call_of(batch, modality)
    images = tap.capture(call.arguments, encode(model, call, modality), modality).images
    for hook in hooks:
        hook.remove()
    maps = [frame for image in images for frame in image.vision_map]
    received = [
        r for image in images for r in image.vision_attention.split(image.vision_map.shape[1])
    ]
    for one, row, two in zip(maps, received, expected, strict=True):
        assert worst(one, two) < 1e-6
        assert worst(row, two.mean(0)) < 1e-6
        assert float(row.sum()) == pytest.approx(1, abs=1e-5)
        assert row.max() - row.min() > 0.01, "all receive the same: this would prove little"


def test_windows_left_sorted_would_be_noticed(monkeypatch):
    sort = lambda self, patches, grid: patches  # noqa: E731
    monkeypatch.setattr(TABLE.get("qwen2_5_vl"), "_in_order", sort)
    with pytest.raises(AssertionError):
        test_attention_is_the_eager_towers("qwen2_5_vl", "image", IMAGES, monkeypatch)


def test_patches_without_rotation_would_be_noticed(monkeypatch):
    for name in ("qwen2_vl", "qwen3_vl"):
        heads = TABLE.get(name).vision_heads

        def plain(self, tapped, call, *, heads=heads, **options):
            cos, sin = tapped.arguments["position_embeddings"]
            still = {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}
            turned = type(tapped)(tapped.module, tapped.states, still)
            return heads(self, turned, call, **options)

        monkeypatch.setattr(TABLE.get(name), "vision_heads", plain)
        with pytest.raises(AssertionError):
            test_attention_is_the_eager_towers(name, "image", IMAGES, monkeypatch)


def test_a_tower_of_windows_only_gives_no_attention():
    model = tiny("qwen2_5_vl")
    model.config.vision_config.fullatt_block_indexes = []
    with pytest.raises(UnsupportedModelError, match="attention of its vision tower"):
        prunetune.apply(model, make_config(model, "0+1+3"))
    prunetune.apply(model, make_config(model, "2+4")).remove()
