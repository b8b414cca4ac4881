"""The embedded model in vLLM: answers, counts and kept sets are those of transformers.

Reference and vLLM run in one environment, so that both see the same pixels.
"""

import pytest
from engines import CHUNKED, PLAIN, config_for, in_pairs, needs_vllm, same

from prunetune.calibration import load_sides
from prunetune.deploy.engines import answers, answers_of, asked
from prunetune.models import load_model
from prunetune.models.load import EMBEDDED
from prunetune.vllm.jobs import Job, ask

pytestmark = [needs_vllm, pytest.mark.slow]
SINGLE, PAIRS, NEW = 120, 10, 8
POSITIONS = ("original", "packed")
CONFIGS = {None: None} | {p: config_for("llava_next", 16, p) for p in POSITIONS}


@pytest.fixture(scope="module")
def samples():
    held_out = list(load_sides("tiny", None, seed=0)[1])[:SINGLE]
    return held_out + in_pairs(held_out, PAIRS)


@pytest.fixture(scope="module")
def expected(samples):
    loaded = load_model("tiny")
    return {k: answers(loaded, c, samples, new_tokens=NEW) for k, c in CONFIGS.items()}


@pytest.fixture(scope="module")
def found(samples, tmp_path_factory):
    prompts = asked(load_model("tiny").processor, samples, tmp_path_factory.mktemp("pictures"))
    alone = {"name": "alone", "alone": True}
    runs = {
        None: [{"name": "eight at once"}],
        "original": [
            alone,
            {"name": "eight at once"},
            {"name": "chunked", "rounds": 2, "engine": {**CHUNKED, "max_num_batched_tokens": 48}},
            {"name": "compiled", "engine": {"enforce_eager": False}},
        ],
        "packed": [
            alone,
            {"name": "chunked", "rounds": 2, "engine": {**CHUNKED, "max_num_batched_tokens": 48}},
        ],
    }
    jobs = [
        Job(
            str(EMBEDDED),
            "llava_next",
            config,
            prompts,
            runs[key],
            {**PLAIN, "limit_mm_per_prompt": {"image": 2}},
            {"max_tokens": NEW},
        )
        for key, config in CONFIGS.items()
    ]
    done = ask(jobs)
    return {
        key: {f"{run['name']} {k}": r for run in each["runs"] for k, r in enumerate(run["rounds"])}
        for key, each in zip(CONFIGS, done, strict=True)
    }


@pytest.mark.parametrize("key", CONFIGS, ids=str)
def test_every_answer_is_that_of_transformers(key, expected, found):
    wanted = expected[key]
    # Two ways to add up float32 numbers: a near tie may fall the other way in one prompt.
    slack = 0 if key is None else 1
    for name, made in found[key].items():
        given = answers_of(made)
        assert same(given[:SINGLE], wanted[:SINGLE]) >= SINGLE - slack, name
        assert same(given[SINGLE:], wanted[SINGLE:]) >= PAIRS - slack, name
        assert [a.prompt_tokens for a in given] == [a.prompt_tokens for a in wanted], name
    if key is not None:
        assert same(wanted, expected[None]) < len(wanted) * 0.9, "pruning changes answers"
        assert sum(a["cached"] for a in found[key]["chunked 1"]["answers"]) > 5000


@pytest.mark.parametrize("key", POSITIONS)
def test_kept_sets_are_those_of_transformers(key, expected, found):
    sets = [answer.kept for answer in answers_of(found[key]["alone 0"])]
    wanted = {picture for answer in expected[key] for picture in answer.kept}
    # A picture that vLLM has encoded already is not encoded again.
    given = {picture for prompt in sets for picture in prompt}
    assert len(given) > 30
    assert len(given & wanted) >= len(given) - 2
    assert {len(alive) for _, alive in given} == {len(alive) for _, alive in wanted}


def test_positions_matter(expected):
    assert same(expected["original"], expected["packed"]) < SINGLE
