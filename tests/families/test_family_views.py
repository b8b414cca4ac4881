"""Families of fixed views: geometry and attention against the models' own code and processors."""

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
from family_models import family
from family_models._towers import picture
from family_models.idefics3 import FAKE, GLOBAL, NEWLINE
from PIL import Image
from reference import worst
from reference_models import make_batch, make_config, tiny
from test_runtime_geometry import token_geometries
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

import prunetune
from prunetune.families.base_configs import grid_side
from prunetune.runtime.apply import family_of
from prunetune.scorers import Scorer
from prunetune.tokens import Mosaic

FAMILIES = ("gemma3", "idefics3", "internvl", "ovis2", "paligemma", "smolvlm")
TILED = ("idefics3", "internvl", "ovis2", "smolvlm")
SIZES = [(30, 60), (60, 30), (20, 90), (80, 26), (50, 52), (24, 24)]
SIDE, PATCH = 24, 8


def patches_of_tokens(model):
    """Push every patch's number through the model's own merging: ``[tokens, patches]``, sorted."""
    rows, cols = grid_side(model.config)
    name, inner = model.config.model_type, model.model
    number = torch.arange(rows * cols, dtype=torch.float32)
    if name == "internvl":
        merged = inner.pixel_shuffle(number.view(1, rows, cols, 1), model.config.downsample_ratio)
        return merged.flatten(0, 2).long().sort(1).values
    if name == "ovis2":
        tower, seen = copy.deepcopy(inner.vision_tower), []
        tower.head_linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        states = number.view(1, -1, 1).expand(-1, -1, tower.config.hidden_size)
        tower.transformer.forward = lambda pixels, **options: (states,)
        tower(number)
        return seen[0].unflatten(2, (-1, states.shape[2]))[0, ..., 0].long().sort(1).values
    if name == "gemma3":
        eye = torch.eye(rows * cols).view(1, rows * cols, rows, cols)
        pooled = inner.multi_modal_projector.avg_pool(eye)[0].flatten(1).T
        return pooled.nonzero()[:, 1].view(len(pooled), -1)
    if name == "paligemma":
        return number.long()[:, None]
    merged = inner.connector.pixel_shuffle(number.view(1, -1, 1), model.config.scale_factor)
    return merged[0].long().sort(1).values


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_is_the_block_of_patches_it_says(name):
    model = tiny(name)
    side = family(name).other
    [[geometry]] = token_geometries(model, make_batch(model, ((2, side, 3),)))
    patches = patches_of_tokens(model)
    rows, cols = grid_side(model.config)
    merge = int(patches.shape[1] ** 0.5)
    assert (name == "paligemma") == (merge == 1)
    assert len(geometry) == len(patches)
    down, across = patches // cols, patches % cols
    assert torch.equal(down // merge, geometry.row[:, None].expand_as(down))
    assert torch.equal(across // merge, geometry.col[:, None].expand_as(across))
    assert set(geometry.tile_rows.tolist()) == {rows // merge}
    assert set(geometry.tile_cols.tolist()) == {cols // merge}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_token_is_of_the_view_it_says(name):
    """What the language model gets at its slot is what the encoder makes of that view alone."""
    model = tiny(name)
    batch = make_batch(model)
    given = {}
    hook = (
        family(model)
        .text_model(model)
        .register_forward_pre_hook(lambda m, args, kwargs: given.update(kwargs), with_kwargs=True)
    )
    model(**batch.inputs)
    hook.remove()
    geometries = token_geometries(model, batch)
    pictures = views_of(name, batch)
    for embeds, ids, row in zip(given["inputs_embeds"], batch.inputs["input_ids"], geometries):
        states = embeds[ids == 99].split([len(geometry) for geometry in row])
        for geometry, got in zip(row, states, strict=True):
            views = next(pictures)
            views = views[None] if name in ("idefics3", "smolvlm") else views
            alone = model.model.get_image_features(views, return_dict=True).pooler_output
            alone = torch.cat([part.reshape(-1, part.shape[-1]) for part in alone])
            per_view = alone.view(views.shape[-4], -1, alone.shape[-1])
            assert worst(got, per_view[geometry.tile, geometry.inside]) < 1e-5
            if len(per_view) > 1:
                assert worst(per_view[0], per_view[1]) > 0.01, "views look alike"


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_patches_are_numbered_row_by_row(name):
    """Change one patch of a view: only what the tower's embedding has at that place changes."""
    model = tiny(name)
    side = model.config.vision_config.image_size
    side = side if isinstance(side, int) else side[0]
    view = torch.zeros(1, 3, side, side)
    changed = view.clone()
    changed[..., 8:12, 4:8] = 1.0
    tower = getattr(model.model, "vision_tower", None) or model.model.vision_model
    tower = getattr(tower, "vision_model", getattr(tower, "transformer", tower))
    embeddings = tower.embeddings
    more = {}
    if name in ("idefics3", "smolvlm"):
        more["patch_attention_mask"] = torch.ones(1, side // 4, side // 4, dtype=torch.bool)
    one, two = (embeddings(v, **more) for v in (view, changed))
    moved = (one - two)[0, int(name == "internvl") :].abs().amax(1) > 0
    assert moved.nonzero().flatten().tolist() == [2 * (side // 4) + 1]


def processed(name, image):
    """Return an image's views as the family's own processor makes them, and (rows, columns)."""
    if name == "internvl":
        from family_models.internvl import PROCESSOR

        size = (image.size[1], image.size[0])
        cols, rows = get_optimal_tiled_canvas(size, (SIDE, SIDE), 1, 6)
        return PROCESSOR(image, return_tensors="pt")["pixel_values"], (rows, cols)
    if name == "ovis2":
        from family_models.ovis2 import PROCESSOR as OVIS

        done = OVIS(image, return_tensors="pt")
        return done["pixel_values"].roll(-1, 0), tuple(done["grids"][0].tolist())
    done = family(name).processor(
        [[image]], return_tensors="pt", do_image_splitting=image.size != (SIDE, SIDE)
    )
    return done["pixel_values"][0], (max(1, done["rows"][0][0]), max(1, done["cols"][0][0]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", TILED)
def test_places_in_the_picture(name, size):
    """Light one spot of a picture: the tokens that see it say that they are there."""
    model = tiny(name)
    [[geometry]] = token_geometries(model, make_batch(model, ((2, size, 3),)))
    _, (rows, cols) = processed(name, picture(size, 0))
    assert int(geometry.tile.max()) == (rows * cols if rows * cols > 1 else 0)
    tiles = geometry.tile > 0
    if tiles.any():
        assert torch.allclose(geometry.height[tiles], torch.tensor(1 / rows / 3))
        assert torch.allclose(geometry.width[tiles], torch.tensor(1 / cols / 3))
    height, width = size
    dark = np.zeros((height, width, 3), np.uint8)
    before, _ = processed(name, Image.fromarray(dark))
    for y, x in ((0.5, 0.5), (0.2, 0.3), (0.8, 0.7), (0.3, 0.9)):
        lit = dark.copy()
        top, left = int(y * height), int(x * width)
        lit[max(0, top - 1) : top + 2, max(0, left - 1) : left + 2] = 255
        after, _ = processed(name, Image.fromarray(lit))
        seen = torch.nn.functional.avg_pool2d((after - before).abs().mean(1), PATCH)
        # Processors put the thumbnail last, or ``processed`` did.
        light = seen[geometry.tile - 1, geometry.row, geometry.col]
        for view in (geometry.tile == 0, tiles):
            weight = light * view
            if not view.any():
                continue
            assert weight.sum() > 0
            centre = torch.stack([(weight * geometry.y).sum(), (weight * geometry.x).sum()])
            reach = torch.stack([geometry.height[view].max(), geometry.width[view].max()])
            assert ((centre / weight.sum() - torch.tensor([y, x])).abs() <= reach).all()


class Probe(Scorer):
    """Keeps what it is given."""

    needs: ClassVar[frozenset] = frozenset(
        {"vision_attention", "vision_map", "patch_entropy", "image_seed"}
    )
    seen: ClassVar[list] = []
    name: str = "views_probe"

    def score(self, ctx):
        self.seen.append(ctx)
        return -torch.arange(len(ctx)).float()


@torch.no_grad()
def contexts(model, batch):
    Probe.seen.clear()
    with prunetune.apply(model, make_config(model, [(0, 0.5, (Probe(),))])):
        model(**batch.inputs)
    return list(Probe.seen)


def views_of(name, batch):
    """Return each picture's views in order of its tile numbers, thumbnail first."""
    for row in batch.pieces:
        for piece in row:
            if piece.count:
                pixels = piece.inputs["pixel_values"]
                last = name in TILED and name != "ovis2"
                yield torch.cat([pixels[-1:], pixels[:-1]]) if last else pixels


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_vision_attention_is_the_towers_own(name):
    """The last layer's eager attention; a token has the sum of its patches."""
    model, plain = tiny(name), tiny(name, "eager")
    batch = make_batch(model)
    tower = getattr(plain.model, "vision_tower", None) or plain.model.vision_model
    patches = patches_of_tokens(model)
    seen = contexts(model, batch)
    for context, views in zip(seen, views_of(name, batch), strict=True):
        weights = tower(pixel_values=views, output_attentions=True).attentions[-1].mean(1)
        row = weights[:, 0, 1:] if name == "internvl" else weights.mean(1)
        expected = row[:, patches].sum(2)
        place = context.geometry
        assert worst(context.vision_attention, expected[place.tile, place.inside]) < 1e-6
        assert expected.std() > 1e-4, "the tower looks everywhere alike"
        inner = weights[:, 1:, 1:] if name == "internvl" else weights
        whole = inner[:, patches].mean(2)[..., patches].sum(3)
        assert worst(context.vision_map, whole) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_patch_entropy_is_that_of_the_tokens_pixels(name):
    model = tiny(name)
    batch = make_batch(model)
    mean, std = (torch.tensor(s) for s in family_of(model).pixel_statistics())
    for context, views in zip(contexts(model, batch), views_of(name, batch), strict=True):
        side = int(context.geometry.tile_rows[0])
        step = views.shape[-1] // side
        grey = (views * std.view(3, 1, 1) + mean.view(3, 1, 1)).clamp(0, 1).mean(1) * 255
        for view, row, col in ((0, 0, side - 1), (len(views) - 1, 1, 0)):
            cell = grey[view, row * step : (row + 1) * step, col * step : (col + 1) * step]
            share = torch.bincount(cell.round().long().flatten()).float() / cell.numel()
            expected = -(share[share > 0] * share[share > 0].log2()).sum()
            assert abs(context.patch_entropy[view, row * side + col] - expected) < 1e-4


@pytest.mark.parametrize("name", TILED)
def test_pictures_have_seeds_of_their_own(name):
    model = tiny(name)
    first = contexts(model, make_batch(model, seed=1))
    rows = tuple((7, *row) for row in family(name).rows)
    again = contexts(model, make_batch(model, rows, seed=1))
    seeds = [context.image_seed for context in first]
    assert seeds == [context.image_seed for context in again]
    assert len(set(seeds)) == len(seeds) == sum(len(row) for row in make_batch(model).images)


@pytest.mark.parametrize("breaks", [[NEWLINE, NEWLINE], [NEWLINE + 50]], ids=["two", "one"])
@pytest.mark.parametrize("words", [1, 7], ids=["tags are tokens", "tags are words"])
def test_pictures_are_read_off_the_tags_between_views(words, breaks):
    """Older tokenizers have no tokens for tags; some make one token of two line breaks."""
    shapes = [(2, 3), (0, 0), (1, 2), (3, 1), (0, 0), (0, 0), (4, 4)]
    ids, slots = [5, 6, FAKE + 70], []

    def tag(*number):
        return [200 + sum(number)] if words == 1 else [300, 301, number[0], 302, number[1], 303]

    def view(label):
        ids.extend([FAKE, *label])
        slots.extend(range(len(ids), len(ids) + 9))
        ids.extend([99] * 9)

    for k, (rows, cols) in enumerate(shapes):
        for row in range(rows):
            for col in range(cols):
                view(tag(10 * (row + 1), col + 1))
            ids.extend(breaks if row == rows - 1 else [NEWLINE])
        view([GLOBAL] if words == 1 else [300, 304, 303])
        ids.extend([FAKE, *range(7, 7 + k % 3)])
    views = len(slots) // 9
    made = family_of(tiny("idefics3")).mosaics(
        torch.tensor(slots), torch.tensor(ids), [torch.zeros(1, 1)] * views
    )
    assert [(m.rows, m.cols) for m in made] == [(max(1, r), max(1, c)) for r, c in shapes]
    assert sum(m.views for m in made) == views


@pytest.mark.parametrize("known", [True, False], ids=["ids", "embeddings"])
def test_ovis_pictures_are_read_off_the_tags_between_views(known):
    """Of embeddings tags are known as equal or not; where all are equal, the thumbnail tells."""
    shapes = [(2, 3), (0, 0), (1, 2), (3, 1), (0, 0), (0, 0), (4, 4), (1, 3), (2, 1)]
    ids, slots, sketches = [5, 6], [], []
    y, x = torch.linspace(0, 3, 48)[:, None], torch.linspace(0, 2, 48)
    whole = (y + 0.3).sin() + (1.7 * x).cos() * y

    def view(sketch):
        slots.extend(range(len(ids), len(ids) + 9))
        ids.extend([99] * 9)
        sketches.append(torch.nn.functional.adaptive_avg_pool2d(sketch[None], 16)[0])

    for k, (rows, cols) in enumerate(shapes):
        ids.append(101)
        view(whole)
        ids.append(102)
        for row, band in enumerate(whole.tensor_split(rows) if rows else ()):
            for col, tile in enumerate(band.tensor_split(cols, 1)):
                view(tile)
                ids.extend([103] * (col < cols - 1))
            ids.extend([104] * (row < rows - 1))
        ids.extend([105, *range(7, 7 + k % 3)])
    labels = torch.tensor(ids) + (0 if known else 1000)
    made = family_of(tiny("ovis2")).mosaics(torch.tensor(slots), labels, sketches)
    assert [(m.rows, m.cols) for m in made] == [(max(1, r), max(1, c)) for r, c in shapes]
    assert sum(m.views for m in made) == len(sketches)


def test_mosaics_that_look_like_the_thumbnail():
    """Any shape of up to twelve tiles, of a smooth picture."""
    view = family_of(tiny("internvl"))
    for rows, cols in [(r, c) for r in range(1, 13) for c in range(1, 13) if 2 < r * c <= 12]:
        y, x = torch.linspace(0, 3, 16 * rows)[:, None], torch.linspace(0, 2, 16 * cols)
        whole = (y + 0.3).sin() + (1.7 * x).cos() * y
        tiles = whole.view(rows, 16, cols, 16).transpose(1, 2).flatten(0, 1)
        small = torch.nn.functional.adaptive_avg_pool2d(whole[None], 16)
        slots = torch.arange(4 * (rows * cols + 1)) + 3
        [mosaic] = view.mosaics(slots, slots, [*tiles, *small])
        assert (mosaic.rows, mosaic.cols) == (rows, cols)


def test_frames_and_single_views_stay_apart():
    slots = torch.cat([torch.arange(4) + at for at in (2, 9, 16)] + [torch.arange(12) + 30])
    sketches = [torch.rand(16, 16) for _ in range(6)]
    made = family_of(tiny("internvl")).mosaics(slots, slots, sketches)
    assert made[:3] == [Mosaic()] * 3
    assert [m.views for m in made] == [1, 1, 1, 3]
