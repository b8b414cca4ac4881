"""What a family needs and has; the recipe of CONTRIBUTING, up to what only a person knows."""

import compileall
import json
import shutil
from pathlib import Path

import pytest
from cli_runner import call
from family_models import family
from transformers import Lfm2VlConfig

from prunetune.deploy import family_check
from prunetune.deploy.family_check import add_to, check_folder
from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.families import FAMILIES
from prunetune.models import skeleton

ROOT = Path(__file__).parents[2]


@pytest.fixture
def unknown(tmp_path, monkeypatch):
    """A folder of a class that has no family, for this test."""
    family("lfm2_vl").model().config.save_pretrained(tmp_path / "model")
    table = {name: path for name, path in FAMILIES._builtin.items() if name != "lfm2_vl"}
    monkeypatch.setattr(FAMILIES, "_builtin", table)
    monkeypatch.setattr(FAMILIES, "_table", None)
    return tmp_path / "model"


def test_a_family_says_what_it_has(tmp_path):
    for name, where in (("qwen3_5", "layer 0 only"), ("qwen3_vl", "layers 0 to 5")):
        family(name).model().config.save_pretrained(tmp_path / name)
        check = check_folder(tmp_path / name)
        rows = dict(check.rows)
        assert check.supported
        assert not check.skeleton
        assert where in rows["tokens can be dropped at"]
        assert rows["its attention"] == "can be read"


@pytest.mark.parametrize("name", [pytest.param("molmo2", marks=family("molmo2").marks), "kimi_k25"])
def test_a_family_says_what_it_lacks(name, tmp_path):
    family(name).model().config.save_pretrained(tmp_path)
    rows = dict(check_folder(tmp_path).rows)
    assert ("no context_entropy" in rows["its attention"]) == (name == "molmo2")
    assert ("no last_query" in rows["the decoder's attention"]) == (name == "kimi_k25")
    assert "none" in rows["levels of pixels"]


def test_a_missing_family_is_written_with_what_was_found(unknown, tmp_path):
    """The real one differs by what a person adds: places, pixels, attention."""
    check = check_folder(unknown)
    assert not check.supported
    for word in ("lfm2_vl", "text_model.embedding_norm", "block.ffn_norm", "TODO"):
        assert word in check.skeleton
    checkout = tmp_path / "checkout"
    for part in (family_check._FAMILIES, family_check._TESTS):
        (checkout / part).mkdir(parents=True)
    shutil.copy(ROOT / family_check.TABLE, checkout / family_check.TABLE)
    written = add_to(checkout, check)
    assert len(written) == 3
    assert all(compileall.compile_file(path, quiet=1) for path in written)
    assert written[2].read_text("utf-8").count('"lfm2_vl"') == 2
    with pytest.raises(ConfigError, match=r"is there already"):
        add_to(checkout, check)


@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        pytest.param(
            "molmo2", ("(Family)", "self_attn", "by mm_token_type_ids"), "FixedViews",
            marks=family("molmo2").marks,
        ),
        ("kimi_k25", ("class KimiK25(RasterPatches)", "layers()[-1].attn"), "QwenVL"),
        ("paddleocr_vl", ("(RasterPatches)", "self.base.visual", "self_attn"), "QwenVL"),
        ("ovis2", ("(FixedViews)", "layers()[-1].attention", "pixel_statistics"), "features("),
        ("granite4_vision", ("(AnyResolution)", "no pooler_output"), "vision_attention_module"),
        ("minicpmv4_6", ("class MiniCPMV46(Family)", "def geometries"), "FixedViews"),
    ],
)  # fmt: skip
def test_what_a_class_is_built_on(name, said, unsaid, tmp_path, monkeypatch):
    """Classes whose families were begun with this recipe, and what it once took wrongly."""
    family(name).model().config.save_pretrained(tmp_path)
    table = {known: path for known, path in FAMILIES._builtin.items() if known != name}
    monkeypatch.setattr(FAMILIES, "_builtin", table)
    monkeypatch.setattr(FAMILIES, "_table", None)
    check = check_folder(tmp_path)
    assert all(word in check.skeleton for word in said), check.skeleton
    assert unsaid not in check.skeleton
    tests = skeleton.test_file(check.found)
    for text in (check.skeleton, tests):
        compile(text, name, "exec")
    assert ("hybrid = True" in tests) == family(name).hybrid
    assert all(f'widen(model, "model.{part}")' in tests for part in check.found.projectors)


def test_what_is_wrong_is_said_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match=r"\A[^\n]+allowed a folder with a config.json[^\n]+\Z"):
        check_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]+llama[^\n]+\Z"):
        check_folder(tmp_path)
    for wrong in ([], {"model_type": "own", "auto_map": {"AutoConfig": "x.Y"}}):
        # Were the folder's code offered to be run, this would wait for an answer.
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(
            ConfigError, match=r"\A[^\n]+(allowed a JSON object|is not run)[^\n]*\Z"
        ):
            check_folder(tmp_path)
    Lfm2VlConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has a family already"):
        add_to(tmp_path, check_folder(tmp_path))


def test_a_class_that_no_family_can_prune_is_a_problem(tmp_path):
    text = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    text |= {"model_type": "cohere2", "num_key_value_heads": 4, "intermediate_size": 128}
    vision = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    vision |= {"model_type": "siglip_vision_model", "intermediate_size": 64}
    said = {"model_type": "aya_vision", "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(said))
    check = check_folder(tmp_path)
    assert "1 norm(s)" in check.problem
    assert not check.skeleton
    with pytest.raises(UnsupportedModelError, match=r"--add: aya_vision cannot be pruned"):
        add_to(tmp_path, check)
    ran = call("models", "--check", tmp_path)
    assert ran.status == 1
    assert ran.out.count("cannot be pruned") == 1
