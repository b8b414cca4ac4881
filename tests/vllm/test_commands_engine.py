"""``verify --engine vllm`` and ``bench --engine vllm`` on the embedded model."""

from functools import partial

import pytest
from cli_runner import call, write_rows
from engines import config_for, needs_vllm

from prunetune.calibration import load_sides
from prunetune.deploy import vllm_bench

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
