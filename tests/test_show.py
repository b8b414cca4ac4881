"""``show``: pictures of kept tokens."""

import pytest
import torch
from cli_runner import call, picture, refused, truncate
from PIL import Image

from prunetune.config import ModelRef, PruningConfig
from prunetune.models import load_model
from prunetune.review import contact_sheet, kept_tokens
from prunetune.review.overlay import _BOX, _panel
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
    sheet = contact_sheet(image, kept, "a title " * 60)
    assert sheet.width > 4 * 250
    assert sheet.height > 2 * min(_BOX, _BOX * size[1] // size[0])
    # Four columns of captions and pictures: none of them is empty paper.
    for k in range(4):
        part = sheet.crop((k * sheet.width // 4, 60, (k + 1) * sheet.width // 4, sheet.height))
        assert len(part.getcolors(1 << 24)) > 20


def test_kept_cells_are_clear_and_dropped_ones_grey(tiny, config):
    image = Image.new("RGB", (128, 128), (200, 20, 20))
    kept = kept_tokens(tiny, config, image, "what ?")
    _, tiles = kept.views()[1]
    panel = _panel(image.resize((320, 320)), kept.geometry, tiles, kept.stages[1].kept)
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
    found = ran.json
    assert len(ran.out.splitlines()) == 1
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
