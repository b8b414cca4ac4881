"""vLLM's own OpenAI server, as a deployment starts it: by the entry point, in several processes.

Two configs after one another share a store of KV blocks on disk, which outlives each server.
"""

import json
import os
from pathlib import Path

import pytest
from engines import EAGER, config_for, needs_vllm, same_texts
from openai_server import serving, started

from prunetune.calibration import load_sides
from prunetune.deploy.engines import answers, asked
from prunetune.models import load_model
from prunetune.models.load import EMBEDDED
from prunetune.vllm.jobs import Job, ask

pytestmark = [needs_vllm, pytest.mark.slow]
COUNT, NEW, BLOCK = 120, 8, 32
ROOT = Path(__file__).resolve().parents[2]
ONE_DIGEST = """
from prunetune.config import PruningConfig
PruningConfig.digest = lambda self: "0" * 64
"""


def test_a_config_that_cannot_run_ends_the_server_with_one_line(tmp_path):
    later = config_for("llava_next", 16, layer=2, restorer=None).save(tmp_path / "later.json")
    process = started(later, tmp_path / "log")
    assert process.wait(600) == 2
    told = (tmp_path / "log").read_text()
    [line] = [line for line in told.splitlines() if "prunetune" in line]
    assert line.startswith("error: prunetune: ")
    assert "layer 2" in line
    assert "Traceback" not in told


def test_settings_that_pruning_cannot_work_with_are_refused():
    """Before anything is loaded; and one that it can work with is not."""
    settings = [
        {"pipeline_parallel_size": 2},
        {"enable_mm_embeds": True},
        {"video_pruning_rate": 0.5},
        {"compilation_config": {"compile_mm_encoder": True}},
        {"enable_chunked_prefill": True},
    ]
    jobs = [
        Job(str(EMBEDDED), "llava_next", config_for("llava_next", layers), [], [], refusals=given)
        for layers, given in ((16, settings), (9, [{}]))
    ]
    of_settings, of_model = (done["refusals"] for done in ask(jobs))
    *refused, fine = of_settings
    assert fine is None
    assert all("leave it out" in str(each) for each in refused), refused
    assert "9 decoder layers" in of_model[0]


@pytest.fixture(scope="module")
def chosen():
    """Return samples, and by positions what our own runtime answers: texts, tokens a prompt.

    The store is made by vLLM to try things out: it looks for a prompt without its last token and
    reads it with that token, so that one token beyond whole blocks would end the engine.
    """
    held_out = list(load_sides("tiny", None, seed=0)[1])[: COUNT + 12]
    loaded, found = load_model("tiny"), {}
    decode = loaded.processor.tokenizer.decode
    for positions in ("original", "packed"):
        config = config_for("llava_next", 16, positions)
        told = answers(loaded, config, held_out, new_tokens=NEW)
        whole = [k for k, answer in enumerate(told) if answer.prompt_tokens % BLOCK != 1][:COUNT]
        texts = [decode(told[k].ids, skip_special_tokens=True) for k in whole]
        found[positions] = texts, [told[k].prompt_tokens for k in whole]
    return [held_out[k] for k in whole], found


def connector(folder):
    """Return settings of vLLM's store of KV blocks in a folder: any server finds what is there."""
    return {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }


def told(replies):
    texts = [each["choices"][0]["message"]["content"] for each in replies]
    usage = [each["usage"] for each in replies]
    cached = [(each["prompt_tokens_details"] or {}).get("cached_tokens") or 0 for each in usage]
    return texts, [each["prompt_tokens"] for each in usage], sum(cached)


@pytest.fixture(scope="module")
def served(chosen, tmp_path_factory):
    """Return by positions two rounds of answers, of two servers with one store of KV blocks."""
    samples, _ = chosen
    folder, found = tmp_path_factory.mktemp("served"), {}
    for positions in ("original", "packed"):
        config = config_for("llava_next", 16, positions).save(folder / f"{positions}.json")
        flags = "--kv-transfer-config", json.dumps(connector(folder))
        with serving(config, folder / f"{positions}.log", *flags) as requested:
            found[positions] = [told(requested(samples, NEW)) for _ in range(2)]
    return found


@pytest.mark.parametrize("positions", ["original", "packed"])
def test_the_openai_server_answers_as_our_own_runtime(positions, chosen, served):
    """Many requests at once, twice; ``packed`` after ``original`` had filled the store."""
    texts, counts = chosen[1][positions]
    other = chosen[1]["packed" if positions == "original" else "original"][0]
    assert same_texts(texts, other) < COUNT - 3, "an answer of the other config would be noticed"
    for round_, (given, tokens, cached) in enumerate(served[positions]):
        assert tokens == counts
        assert cached > 5000 * round_
        assert same_texts(given, texts) >= COUNT - 1, (positions, round_)


def test_under_one_digest_the_second_config_would_answer_from_the_first_ones_cache(
    chosen, tmp_path, monkeypatch
):
    """So the store of the test above does hand over what it finds; the digest keeps it apart."""
    samples, expected = chosen
    texts = [expected[positions][0] for positions in ("original", "packed")]
    apart = [s for s, a, b in zip(samples, *texts, strict=True) if a.strip() != b.strip()][:12]
    own = [b for a, b in zip(*texts, strict=True) if a.strip() != b.strip()][:12]
    prompts = asked(load_model("tiny").processor, apart, tmp_path)
    (tmp_path / "sitecustomize.py").write_text(ONE_DIGEST)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    settings = {**EAGER, "block_size": BLOCK, "kv_transfer_config": connector(tmp_path)}
    jobs = [
        Job(
            str(EMBEDDED),
            "llava_next",
            config_for("llava_next", 16, positions),
            prompts,
            [{"name": "shared"}],
            settings,
            {"max_tokens": NEW},
        )
        for positions in ("original", "packed")
    ]
    [round_] = ask(jobs)[1]["runs"][0]["rounds"]
    assert same_texts([each["text"] for each in round_["answers"]], own) < len(own) / 2
