"""Options of a processor take effect in the tokens, are refused in one line, and travel along."""

import pytest
from cli_runner import call, refused
from family_models import family as tiny_family
from family_models._folders import save_qwen
from PIL import Image

from prunetune.calibration import Sample, encode
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.models import load_model
from prunetune.models.options import check_options, differing, with_options
from prunetune.presets import load_preset
from prunetune.spec import StudySpec
from prunetune.study.resumed import difference

CELL = 8
"""Side of a visual token of the tiny Qwen-VL, in pixels; its own limits are 1,024 and 1,600."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_qwen(tiny_family("qwen2_5_vl"), tmp_path_factory.mktemp("qwen"))


def tokens(loaded, side=80):
    sample = Sample((Image.new("RGB", (side, side), "red"),), "what ?")
    ids = encode(loaded.processor, [sample])["input_ids"]
    return int((ids == loaded.model.config.image_token_id).sum())


def test_limits_on_pixels_take_effect(folder):
    """80 x 80 pixels, and 16 x 16 of them; a token is 8 x 8."""
    own = load_model(str(folder))
    assert tokens(own) == 1600 // CELL**2
    more = load_model(str(folder), processor={"max_pixels": 6400})
    assert tokens(more) == 6400 // CELL**2
    less = load_model(str(folder), processor={"max_pixels": 1024, "min_pixels": 256})
    assert tokens(less) == 1024 // CELL**2
    assert tokens(less, side=16) == 256 // CELL**2 < tokens(own, side=16)
    size = load_model(str(folder), processor={"size": {"shortest_edge": 64, "longest_edge": 400}})
    assert tokens(size) == 4
    # What one model is loaded with is nobody else's.
    assert tokens(load_model(str(folder))) == tokens(own)


def test_what_a_processor_says_in_every_call_is_overruled():
    """InternVL's asks for tiles whatever its picture processor says."""
    from types import SimpleNamespace

    from family_models.internvl import PROCESSOR

    whole = SimpleNamespace(image_processor=PROCESSOR, images_kwargs={"crop_to_patches": True})
    changed = with_options(whole, {"crop_to_patches": False})
    assert changed.images_kwargs == {"crop_to_patches": False}
    assert changed.image_processor.crop_to_patches is False
    assert PROCESSOR.crop_to_patches is True
    defaults = SimpleNamespace(_defaults={"images_kwargs": {"crop_to_patches": True}})
    older = type("Older", (), {"valid_processor_kwargs": defaults, "image_processor": PROCESSOR})
    with pytest.raises(ConfigError, match=r"sets itself in every call before transformers 5\.23"):
        with_options(older(), {"crop_to_patches": False})


def test_what_cannot_be_is_refused_in_one_line(folder):
    config = ("bench", "--preset", "uniform", "--keep", "0.5", "--model", folder)
    for words, has in (
        (("--processor", "max_pixel=3"), ("'max_pixel'", "did you mean 'max_pixels'")),
        (("--processor", "max_pixels"), ("KEY=VALUE",)),
        (("--processor", "max_pixels=3", "--max-pixels", "3"), ("max_pixels twice",)),
        (("--max-pixels", "0"), ("max_pixels=0", "at least 1")),
        (("--processor", "min_pixels=a"), ("min_pixels=a", "whole number")),
        (("--min-pixels", "4096", "--max-pixels", "64"), ("at most the second",)),
        (("--processor", 'size={"longest_edge": 64}'), ("cannot work with", "longest_edge")),
    ):
        refused(*config, *words, has=has)
    refused("bench", "--preset", "uniform", "--keep", "0.5", "--shape", "mid", "--max-pixels", "9",
            has=("--shape has no processor",))  # fmt: skip


def test_what_is_searched_is_what_is_served(folder, tmp_path):
    words = ("search", "--model", folder, "--max-pixels", "1024", "--processor", "do_rescale=true",
             "--trials", "1", "--samples", "2", "--preset", "none", "--keep", "0.5", "--no-report",
             "--no-cache", "--threads", "1", "--out", tmp_path / "run")  # fmt: skip
    data = tmp_path / "data"
    for side in ("one", "two"):
        (data / side).mkdir(parents=True)
        for k in range(2):
            Image.effect_noise((80, 80 + 8 * k), 60).convert("RGB").save(data / side / f"{k}.png")
    words = (*words, "--data", data / "one", "--held-out", data / "two")
    ran = call(*words, "--json")
    assert ran.status == 0, ran.err
    wanted = {"max_pixels": 1024, "do_rescale": True}
    assert StudySpec.load(tmp_path / "run" / "spec.toml").processor == wanted
    config = PruningConfig.load(tmp_path / "run" / "config.json")
    made = config.provenance
    assert made.processor == wanted
    # Tower, language model and their sum, unpruned and pruned.
    assert made.flops["sum"] == made.flops["tower"] + made.flops["language_model"]
    assert made.flops["tower"] == made.flops["unpruned_tower"] > 0
    assert made.flops["language_model"] < made.flops["unpruned_language_model"]
    refused(*words, "--processor", "min_pixels=64", has=("another spec", "processor.min_pixels"))

    again = ("verify", tmp_path / "run" / "config.json", "--data", data / "one", "--held-out",
             data / "two", "--threads", "1", "--json")  # fmt: skip
    same = call(*again)
    found = same.json
    assert found["reproduced"] is True, found
    assert found["calibration"]["mean_retention"] == pytest.approx(made.mean_retention, abs=0.05)
    assert "processor options differ" not in same.err
    other = call(*again, "--max-pixels", "6400")
    assert "received max_pixels=6400" in other.err
    assert "searched with max_pixels=1024" in other.err
    figures = other.json
    assert figures["layers"][0]["tokens"] > found["layers"][0]["tokens"]


def test_files_of_before_have_no_options():
    spec = StudySpec()
    assert "processor" not in spec.to_toml()
    assert difference(spec, StudySpec.parse({"processor": {}})) == []
    assert difference(spec, StudySpec.parse({"processor": {"a": 1}})) == ["processor.a (None -> 1)"]
    config, _ = load_preset("uniform", model_type="llava_next", num_layers=16, keep=0.4)
    assert '"processor"' not in config.model_dump_json()
    assert differing(None, {}) == (None, "")
    assert differing({"a": 1, "b": 2}, {"b": 2}) == ({"a": 1, "b": 2}, "")
    now, line = differing({"a": 1, "b": 2}, {"b": 3})
    assert now == {"a": 1, "b": 3}
    assert "received b=3" in line
    check_options({"min_pixels": 4, "max_pixels": 4, "size": {"longest_edge": 3}})
