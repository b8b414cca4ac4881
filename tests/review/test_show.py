"""``show``: pictures of kept tokens."""

import io

import pytest
import torch
from cli_runner import call, picture, refused, truncate
from PIL import Image
from rich.console import Console

from prunetune.config import ModelRef, PruningConfig
from prunetune.models import load_model
from prunetune.review.pictures.heatmap import (
    ONLY_A,
    ONLY_B,
    colour,
    difference_panel,
    heat_panel,
    scaled,
)
from prunetune.review.pictures.overlay import BOX, cell, kept_panel, kept_tokens
from prunetune.review.pictures.sheet import Row, sheet
from prunetune.review.pictures.terminal import print_kept
from prunetune.tokens import keep_count

FAST = ("--threads", "1")
STAGES = (
    {"layer": 0, "retention": 0.7, "scorers": [{"name": "cls_attention"}, {"name": "coverage"}]},
    {"layer": 3, "retention": 0.3, "scorers": [{"name": "last_query"}]},
    {"layer": 8, "retention": 0.08},
)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def config(tiny):
    depth = tiny.model.config.text_config.num_hidden_layers
    model = ModelRef(model_type="llava_next", num_layers=depth, name="tiny")
    return PruningConfig(model=model, stages=STAGES, separators="drop")


@pytest.fixture
def files(config, tmp_path):
    picture(2).save(tmp_path / "a.png")
    return config.save(tmp_path / "c.json"), tmp_path / "a.png"


@pytest.mark.parametrize("size", [(64, 128), (128, 128), (640, 480)])
def test_every_stage_is_drawn_with_the_tokens_it_kept(tiny, config, size):
    image = picture(3, size)
    kept = kept_tokens(tiny, config, image, "what color is the circle ?")
    total = len(kept.geometry)
    before = torch.ones(total, dtype=torch.bool)
    for stage, spec in zip(kept.stages, STAGES, strict=True):
        assert stage.layer == spec["layer"]
        assert stage.count == keep_count(total, spec["retention"], int(before.sum()))
        assert bool((stage.kept <= before).all())
        assert stage.caption.startswith(f"layer {stage.layer}: {stage.count} of {total} (")
        before = stage.kept
    (first, thumbnail), (second, tiles) = kept.views()
    assert first.startswith("thumbnail")
    assert second.startswith("tiles")
    assert not bool((thumbnail & tiles).any())
    assert bool((thumbnail | tiles).eq(~kept.geometry.separator).all())
    page = sheet([Row("", image, kept)], "a title " * 60)
    assert page.width > 4 * 250
    assert page.height > 2 * min(BOX, BOX * size[1] // size[0])
    # Four columns of captions and pictures: none of them is empty paper.
    for k in range(4):
        part = page.crop((k * page.width // 4, 60, (k + 1) * page.width // 4, page.height))
        assert len(part.getcolors(1 << 24)) > 20


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_a_picture_thinner_than_its_tokens_is_drawn(tiny, config, size):
    image = picture(3, (64, 64)).resize(size)
    row = Row("", image, kept_tokens(tiny, config, image, "what ?"))
    for scores in (False, True):
        assert sheet([row, Row("", image, row.kept, row.kept)], scores=scores).width > 250
        shown = printed([row], scores=scores, color_system="truecolor", force_terminal=True)
        assert len(shown.splitlines()) < 4000


def test_kept_cells_are_clear_and_dropped_ones_grey(tiny, config):
    image = Image.new("RGB", (128, 128), (200, 20, 20))
    kept = kept_tokens(tiny, config, image, "what ?")
    _, tiles = kept.views()[1]
    panel = kept_panel(image.resize((320, 320)), kept.geometry, tiles, kept.stages[1].kept)
    seen = set()
    for i in tiles.nonzero().flatten().tolist():
        at = int(kept.geometry.x[i] * 320), int(kept.geometry.y[i] * 320)
        red, green, _ = panel.getpixel(at)
        alive = bool(kept.stages[1].kept[i])
        assert (red - green > 100) == alive
        seen.add(alive)
    assert seen == {True, False}


def test_the_verb_writes_the_picture_and_prints_counts(files, tmp_path, monkeypatch):
    config, image = files
    monkeypatch.chdir(tmp_path)
    ran = call("show", config, image, *FAST)
    assert ran.status == 0, ran.err
    assert "layer 3: " in ran.out
    assert "thumbnail" in ran.out
    assert "answer" not in ran.out
    with Image.open(tmp_path / "a-kept.png") as sheet:
        assert sheet.format == "PNG"
    asked = ("--question", "what color is the circle ?", "-o", tmp_path / "k.jpg", "--json")
    ran = call("show", config, image, *asked, *FAST)
    assert len(ran.out.splitlines()) == 1
    (found,) = ran.json["images"]
    assert [stage["layer"] for stage in found["stages"]] == [0, 3, 8]
    assert all(stage["of"] == found["image_tokens"] for stage in found["stages"])
    # Separators were dropped, so the views are all there is.
    assert all(sum(stage["views"].values()) == stage["kept"] for stage in found["stages"])
    assert set(found["answers"]) == {"pruned", "unpruned"}
    assert (tmp_path / "k.jpg").exists()


def test_bad_input_is_one_line(files, tmp_path):
    config, image = files
    refused("show", tmp_path / "no.json", image, has=("no.json",))
    refused("show", config, tmp_path / "no.png", has=("no.png", "No such file"))
    (tmp_path / "text.png").write_text("no picture")
    refused("show", config, tmp_path / "text.png", has=("text.png", "no picture of a known"))
    picture(1).save(tmp_path / "cut.jpg")
    line = refused("show", config, truncate(tmp_path / "cut.jpg"), has=("cut.jpg", "truncated"))
    assert "--skip-bad" not in line
    refused("show", config, image, "-o", tmp_path / "k.txt", *FAST, has=("k.txt", ".png"))
    refused("show", config, image, "-o", image / "k.png", *FAST, has=("k.png",))
    refused("show", config, has=("IMAGE",))
    refused("show", config, *[image] * 33, has=("33", "32"))
    refused("show", config, image, "--against", tmp_path / "no.json", has=("no.json",))


def colours(panel, geometry, member):
    """Return the most frequent colour of each token's cell."""
    found = {}
    for i in member.nonzero().flatten().tolist():
        left, top, right, bottom = cell(geometry, i, panel.size)
        part = panel.crop((left + 2, top + 2, right - 1, bottom - 1))
        found[i] = max(part.getcolors(1 << 16))[1]
    return found


def test_scores_are_drawn_in_order_and_what_was_gone_before_is_not(tiny, config):
    image = Image.new("RGB", (BOX, BOX), (128, 128, 128))
    kept = kept_tokens(tiny, config, picture(3, (128, 128)), "what ?")
    _, tiles = kept.views()[1]
    first, second, _ = kept.stages
    known = ~second.scores.isnan()
    assert bool(known.eq(first.kept & ~kept.geometry.separator).all())
    # What a stage keeps is what scored highest.
    inside = second.scores[known & second.kept].min() >= second.scores[known & ~second.kept].max()
    assert bool(inside)
    shares = scaled(second.scores)
    panel = heat_panel(image, kept.geometry, tiles, second.kept, second.scores)
    for i, (red, green, blue) in colours(panel, kept.geometry, tiles & known).items():
        for seen, pure in zip((red, green, blue), colour(float(shares[i]))):
            assert abs(seen - (0.85 * pure + 0.15 * 128)) <= 2
    assert colour(0.0) != colour(1.0)
    assert sum(colour(0.2)) < sum(colour(0.5)) < sum(colour(1.0))
    assert scaled(torch.tensor([2.0, 2.0])).tolist() == [0.5, 0.5]
    page = sheet([Row("a", image, kept)], "title", scores=True)
    assert page.height > sheet([Row("a", image, kept)], "title").height


def test_what_only_one_of_two_configs_keeps_is_coloured(tiny, config):
    image = Image.new("RGB", (BOX, BOX), (128, 128, 128))
    kept = kept_tokens(tiny, config, picture(3, (128, 128)), "what ?")
    a, b = kept.stages[1].kept, torch.roll(kept.stages[1].kept, 1)
    _, tiles = kept.views()[1]
    seen = colours(difference_panel(image, kept.geometry, tiles, a, b), kept.geometry, tiles)
    for i, shade in seen.items():
        only = ONLY_A if a[i] and not b[i] else ONLY_B if b[i] and not a[i] else (128,) * 3
        expected = [0.85 * x + 0.15 * 128 for x in only]
        painted = all(abs(x - y) <= 2 for x, y in zip(shade, expected))
        assert painted == bool(a[i] or b[i])


def test_several_pictures_and_two_configs_on_one_sheet(files, config, tmp_path):
    one, image = files
    two = config.model_copy(update={"stages": config.stages[:1]}).save(tmp_path / "two.json")
    odd = tmp_path / '<b>odd\' "name".png'
    picture(4).save(odd)
    out = tmp_path / "sheet.png"
    ran = call("show", one, image, odd, "--against", two, "--scores", "-o", out, "--json", *FAST)
    assert ran.status == 0, ran.err
    first, second = ran.json["images"]
    assert second["image"] == str(odd)
    assert len(first["stages"]) == 3
    assert len(first["against"]) == 1
    assert first["against"][0]["kept"] >= first["kept_by_both"]
    with Image.open(out) as page:
        assert page.width > 6 * 250
        single = call("show", one, image, "-o", tmp_path / "one.png", *FAST)
        assert single.status == 0
        with Image.open(tmp_path / "one.png") as alone:
            assert page.height > 1.8 * alone.height


def test_a_terminal_shows_every_token_with_and_without_colour(tiny, config, tmp_path):
    image = picture(3, (128, 128))
    rows = [Row("[red]x[/red].png", image, kept_tokens(tiny, config, image, "what ?"))]
    plain = printed(rows)
    assert "\x1b" not in plain
    assert "[red]x[/red].png" in plain  # a name is no markup
    kept = rows[0].kept
    patches = [int((stage.kept & ~kept.geometry.separator).sum()) for stage in kept.stages]
    assert plain.count("█") == sum(patches) + 1  # and one in the legend
    bare = printed(rows, encoding="ascii")
    assert bare.isascii()
    assert bare.count("#") == sum(patches) + 1
    bright = printed(rows, color_system="truecolor", force_terminal=True)
    assert "▀" in bright
    assert "\x1b[38;2;" in bright
    assert "░" in printed(rows, scores=True)
    narrow = printed(rows, width=30)
    assert max(map(len, narrow.splitlines()[4:12])) <= 30


def printed(rows, encoding="utf-8", width=120, scores=False, **options):
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=buffer, width=width, **options)
    print_kept(console, rows, scores=scores)
    buffer.flush()
    return buffer.buffer.getvalue().decode(encoding)


def test_the_verb_prints_when_piped(files, tmp_path, monkeypatch):
    config, image = files
    monkeypatch.chdir(tmp_path)
    ran = call("show", config, image, "--terminal", *FAST)
    assert ran.status == 0, ran.err
    assert "a.png" in ran.out
    assert "kept" in ran.out
    assert not (tmp_path / "a-kept.png").exists()
