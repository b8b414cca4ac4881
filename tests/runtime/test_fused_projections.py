"""A language model that projects queries, keys and values in one piece: Phi-3 under LLaVA-NeXT."""

import shutil

import pytest
import torch
from cli_runner import call, refused, write_set
from transformers import AutoConfig, LlavaNextForConditionalGeneration, Phi3Config

import prunetune
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.errors import UnsupportedModelError
from prunetune.models import EMBEDDED, load_model
from prunetune.scorers import SCORERS

LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model's tower, tokenizer and processor; other random weights behind them."""
    where = tmp_path_factory.mktemp("models") / "phi3"
    shutil.copytree(EMBEDDED, where, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    config = AutoConfig.from_pretrained(EMBEDDED)
    config.text_config = Phi3Config(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        original_max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config.dtype = torch.float32
    torch.manual_seed(0)
    LlavaNextForConditionalGeneration(config).save_pretrained(where)
    return where


def config(scorer, layer):
    ref = ModelRef(model_type="llava_next", num_layers=LAYERS)
    stage = Stage(layer=layer, retention=0.3, scorers=(SCORERS.get(scorer)(name=scorer),))
    return PruningConfig(model=ref, stages=(stage,))


def test_last_query_is_refused_before_anything_runs(folder):
    """Other scorers work there, and the refusal leaves nothing on the model."""
    model = load_model(str(folder)).model
    with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*last_query[^\n]*phi3[^\n]*\Z"):
        prunetune.apply(model, config("last_query", 2))
    assert not hasattr(model.model.language_model.layers[0].self_attn, "q_proj")
    prunetune.apply(model, config("topv", 2)).remove()


def test_a_search_leaves_it_out_and_says_so(folder, tmp_path):
    pytest.importorskip("optuna", reason="without the extra `search` there is nothing to run")
    data = write_set(tmp_path / "data")
    common = ("--keep", 0.5, "--trials", 2, "--preset", "none", "--data", data, "--json")
    ran = call(
        "search", "--model", folder, *common,
        "--out", tmp_path / "out", "--cache-dir", tmp_path / "cache",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert "left out of the search: key_norm, last_query, whose inputs" in ran.err
    assert ran.json["trials"]["complete"] == 2
    rows = {row["name"]: row for row in ran.json["baselines"]}
    assert rows["fastv"]["held_out_gap"] is None
    assert "cannot give last_query" in rows["fastv"]["notes"]
    assert rows["topv"]["held_out_gap"] > 0
    best = PruningConfig.load(tmp_path / "out" / "config.json")
    assert "last_query" not in {s.name for stage in best.stages for s in stage.scorers}
    refused(
        "search", "--model", folder, *common, "--scorers", "last_query,coverage",
        "--out", tmp_path / "other", has=("last_query", "allowed"),
    )  # fmt: skip


def test_nothing_is_left_out_of_a_search_on_plain_projections(tmp_path):
    pytest.importorskip("optuna", reason="without the extra `search` there is nothing to run")
    ran = call(
        "search", "--model", "tiny", "--keep", 0.5, "--trials", 1, "--preset", "none", "--data",
        write_set(tmp_path / "data"), "--out", tmp_path / "out", "--cache-dir", tmp_path / "cache",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert "left out" not in ran.err
