"""``verify --engine vllm`` and ``bench --engine vllm`` on the embedded model."""

from functools import partial
from pathlib import Path

import pytest
from cli_runner import call, write_rows
from engine_models import saved
from engines import config_for, needs_vllm
from family_models import LAYERS

from prunetune.calibration import load_sides
from prunetune.deploy import vllm_bench
from prunetune.deploy.request import noise

pytestmark = [needs_vllm, pytest.mark.slow]
COUNT = 8


@pytest.fixture
def config(tmp_path):
    return config_for("llava_next", 16).save(tmp_path / "tiny.prune.json")


@pytest.fixture
def data(tmp_path):
    """Return questions with right answers, every other one in capitals."""
    for split, side in zip(("calibration", "held_out"), load_sides("tiny", None, seed=0)):
        folder, rows = tmp_path / "set" / split, []
        folder.mkdir(parents=True)
        for k, sample in enumerate(side.samples[:COUNT]):
            answer = sample.answer.upper() if k % 2 else sample.answer
            name = f"{split}-{k}.png"
            rows.append({"file_name": name, "question": sample.question, "answer": answer})
            sample.images[0].save(folder / name)
        write_rows(folder, rows)
    return tmp_path / "set"


def test_verify_compares_the_engines_and_counts_answers_as_it_is_told(config, data):
    flags = ("--model", "tiny", "--data", data, "--json")
    ran = call("verify", config, *flags, "--engine", "vllm", "--match", "exact")
    assert ran.status == 0, (ran.out, ran.err)
    told = ran.json
    assert told["same"] == told["same_at_once"] == told["same_unpruned"] == told["samples"]
    assert told["counts_exact"]
    assert told["prompt_tokens"] < told["unpruned_tokens"] / 2
    assert told["match"] == "exact"
    here = call("verify", config, *flags, "--self-test", 0, "--match", "exact").json
    assert told["right"] == told["right_in_transformers"] == here["calibration"]["accuracy"]
    aside = call("verify", config, *flags, "--self-test", 0).json
    assert told["right"] < aside["calibration"]["accuracy"]


def test_bench_measures_every_case_at_every_load(config, monkeypatch):
    # What compiles is an engine of test_embedded_engine.
    quick = partial(vllm_bench.bench_in_vllm, engine={"enforce_eager": True})
    monkeypatch.setattr(vllm_bench, "bench_in_vllm", quick)
    flags = ("--concurrency", "1,2", "--rounds", 1, "--new-tokens", 2, "--image-size", "128x96")
    ran = call("bench", config, "--model", "tiny", "--engine", "vllm", *flags, "--json")
    assert ran.status == 0, ran.err
    cases = {(case["name"], case["concurrency"]): case for case in ran.json["cases"]}
    assert {load for _, load in cases} == {1, 2}
    for load in (1, 2):
        unpruned, pruned, uniform = (
            cases[name, load] for name in ("unpruned", "pruned", "uniform")
        )
        assert pruned["prompt_tokens"] == uniform["prompt_tokens"] < unpruned["prompt_tokens"] / 2
        assert unpruned["verdict"] == ""
        assert "requests a second" in pruned["verdict"]
        assert all(cases[name, load]["first"]["median"] > 0 for name in ("unpruned", "pruned"))


def test_a_relative_folder_of_a_model_whose_views_stand_apart(tmp_path, monkeypatch):
    """The engine runs in a process of its own, which has to find what is named from here.

    What else lies here is no module, nor is it for processes that vLLM starts.
    """
    monkeypatch.chdir(tmp_path)
    Path("random.py").write_text("raise SystemExit('a file of the user')")
    saved("smolvlm", Path("models/small"))
    stage = {"retention": 0.4, "selector": {"name": "cover", "scope": "view"}}
    config_for("smolvlm", LAYERS, **stage).save(Path("small.prune.json"))
    Path("pictures").mkdir()
    for k, size in enumerate([(40, 32), (90, 64), (24, 48)]):
        noise(size, k).save(f"pictures/{k}.png")
    flags = ("--model", "models/small", "--data", "pictures", "--engine", "vllm", "--json")
    ran = call("verify", "small.prune.json", *flags)
    assert ran.status == 0, (ran.out, ran.err)
    assert ran.json["counts_exact"]
    assert ran.json["same"] == ran.json["samples"]
