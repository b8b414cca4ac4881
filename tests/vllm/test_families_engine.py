"""Every family that vLLM has, on a tiny random model of the real class: as in transformers."""

import os

import pytest
from engine_models import saved, suppressed
from engines import CHUNKED, PLAIN, config_for, needs_vllm, same
from family_models import LAYERS

from prunetune.calibration import Sample
from prunetune.deploy.engines import answers, answers_of, asked
from prunetune.deploy.request import noise
from prunetune.families import FAMILIES
from prunetune.models import load_model
from prunetune.vllm.fits import ARCHITECTURES, by_view
from prunetune.vllm.jobs import Job, ask

pytestmark = [needs_vllm, pytest.mark.slow]
NEW = 10
# The embedded model is of the first, and ``verify`` is tested on the other (test_commands_engine).
NAMES = [n for n in ARCHITECTURES if n not in ("llava_next", "smolvlm")]
if os.environ.get("PRUNETUNE_FAMILIES"):
    NAMES = os.environ["PRUNETUNE_FAMILIES"].split(",")
# Scores whose neighbours are apart: what is compared is the way to them, not how ties are broken.
STAGE = {
    "retention": 0.4,
    "scorers": [{"name": "cls_attention", "weight": 1.0}, {"name": "coverage", "weight": 0.2}],
    "selector": {"name": "maxmin"},
}


def samples_of(name):
    """Return six prompts of one picture and two of two, where both engines tile alike.

    Pictures of noise: patches of one colour are equal, and last bits decide which of them stay.
    """
    sizes = [(40, 32), (32, 24), (24, 48), (90, 64), (64, 128), (40, 40)]
    single = [Sample((noise(s, k),), f"what {k} ?") for k, s in enumerate(sizes)]
    if name == "llava_onevision":
        # vLLM cuts each of several pictures up, transformers none of them.
        return single
    pairs = [(single[0], single[3]), (single[4], single[1])]
    return single + [Sample((a.images[0], b.images[0]), "and ?") for a, b in pairs]


def modes(name):
    return ("original", "packed") if FAMILIES.get(name).can_pack else ("original",)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return by family: unpruned and by mode what transformers answers, and what vLLM does."""
    jobs, wanted = {}, {}
    for name in NAMES:
        folder = saved(name, tmp_path_factory.mktemp(name))
        loaded = load_model(str(folder), dtype="float32")
        loaded.model.generation_config.eos_token_id = None
        samples = samples_of(name)
        prompts = asked(loaded.processor, samples, folder)
        configs = {"unpruned": None}
        for mode in modes(name):
            stage = STAGE if mode == "original" else {**STAGE, "selector": None}
            configs[mode] = by_view(config_for(name, LAYERS, mode, **stage))
        biased = {"logit_bias": dict.fromkeys(suppressed(folder), -100.0), "ignore_eos": True}
        for mode, config in configs.items():
            key = name, mode
            wanted[key] = answers(loaded, config, samples, new_tokens=NEW)
            runs = [{"name": "alone", "alone": True}]
            if mode == "original":
                # As vLLM counts them, no picture of this family has more tokens than 1153 x 944
                # pixels: true of the real ones.
                most = 64 if name == "llava_onevision" else 32
                tight = {**CHUNKED, "max_num_batched_tokens": most}
                runs.append({"name": "chunked", "rounds": 2, "engine": tight})
            jobs[key] = Job(
                str(folder),
                name,
                config,
                prompts,
                runs,
                {**PLAIN, "max_model_len": 512, "limit_mm_per_prompt": {"image": 2, "video": 0}},
                {"max_tokens": NEW, **biased},
            )
    results = ask(list(jobs.values()), strict=False)
    failed = {key: each["error"] for key, each in zip(jobs, results) if "error" in each}
    found = {
        key: [answers_of(r) for run in each["runs"] for r in run["rounds"]]
        for key, each in zip(jobs, results, strict=True)
        if key not in failed
    }
    return wanted, found, failed


@pytest.mark.parametrize("name", NAMES)
def test_answers_counts_and_kept_sets_are_those_of_transformers(name, done):
    wanted, found, failed = done
    assert {key: why for key, why in failed.items() if key[0] == name} == {}
    for mode in ("unpruned", *modes(name)):
        theirs = wanted[name, mode]
        for given in found[name, mode]:
            assert [a.prompt_tokens for a in given] == [a.prompt_tokens for a in theirs], mode
            assert same(given, theirs) == len(theirs), (mode, given, theirs)
        if mode != "unpruned":
            assert same(theirs, wanted[name, "unpruned"]) < len(theirs), "pruning changes answers"
            sets = {picture for a in found[name, mode][0] for picture in a.kept}
            assert sets == {picture for a in theirs for picture in a.kept}
