"""``bench``: exact counts, verdicts that follow from the times, refusals before memory is taken."""

import json
import math
from pathlib import Path

import pytest
import torch
from cli_runner import call, refused
from family_models import family as tiny_family
from family_models._folders import save_qwen
from test_architecture import SEARCH_ONLY, loaded_by_step

from prunetune.budget import mean_retention
from prunetune.config import ModelRef, PruningConfig
from prunetune.deploy import bench as benching
from prunetune.deploy import memory, shapes, subject
from prunetune.deploy.request import largest_within, processed_request, tokens_of
from prunetune.deploy.shapes import SHAPES, count_parameters
from prunetune.deploy.subject import Asked, Wanted, loaded_subject, random_subject
from prunetune.deploy.timing import Run, Stopwatch, interleave, spread
from prunetune.deploy.verdict import judge
from prunetune.errors import ConfigError
from prunetune.models import load_model
from prunetune.models.devices import device_shown
from prunetune.presets import load_preset
from prunetune.runtime.apply import family_of
from prunetune.runtime.choice import choose

torch.set_num_threads(1)
SMALL = {name: SHAPES[name].shrunk() for name in ("llava-next-7b", "llava-1.5-7b")}


@pytest.fixture
def small(monkeypatch):
    """Make ``--shape`` mean the shrunk shapes."""
    for name, shape in SMALL.items():
        monkeypatch.setitem(SHAPES, name, shape)


def config_for(shape, stages=((1, 0.55), (3, 0.23))):
    return PruningConfig(
        model=ModelRef(model_type=shape.model_type, num_layers=shape.num_layers),
        stages=[
            {"layer": layer, "retention": share, "scorers": [{"name": "coverage"}]}
            for layer, share in stages
        ],
    )


def made(shape, config, **asked):
    wanted = Wanted(None, "random", 0.5)
    wanted.config_for = lambda *args: (config, "")
    return random_subject(wanted, Asked(**asked), shape, device="cpu")


def measured(shape, config=None, new_tokens=3, rounds=1, **asked):
    about = made(shape, config or config_for(shape), new_tokens=new_tokens, **asked)
    return about, benching.bench(
        about.family, about.config, about.request, new_tokens=new_tokens, rounds=rounds
    )


# -- what is counted is exact ------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_the_cache_is_what_the_retentions_say_to_the_token(name):
    shape = SMALL[name]
    about, result = measured(shape, batch=2, images=2, prompt_tokens=9)
    image = about.request.images[0]
    # By the contract alone: each image keeps retention x tokens, rounded half up.
    per_image = [image, *[int(0.55 * image + 0.5)] * 2, int(0.23 * image + 0.5)]
    unpruned, pruned, uniform = result.cases
    assert [case.name for case in result.cases] == ["unpruned", "pruned", "uniform"]
    assert unpruned.visual_slots == 2 * 2 * 4 * image
    assert pruned.visual_slots == 2 * 2 * sum(per_image) == pruned.promised_slots
    assert pruned.kv_ratio == sum(per_image) / (4 * image)
    assert pruned.kv_ratio == pytest.approx(mean_retention(about.config.stages, 4), abs=0.5 / image)
    assert uniform.visual_slots == uniform.promised_slots
    assert uniform.mean_retention == pytest.approx(pruned.mean_retention)
    text = shape.text
    slot = 2 * text["num_key_value_heads"] * text["hidden_size"] // text["num_attention_heads"] * 4
    for case in result.cases:
        assert case.kv_bytes == (case.visual_slots + 2 * 4 * 9) * slot
    assert unpruned.flops_ratio == 1
    assert pruned.flops_ratio < 1


def test_a_runtime_that_keeps_one_more_would_be_seen(monkeypatch):
    right = choose.keep_count
    monkeypatch.setattr(choose, "keep_count", lambda n, r, m: min(m, right(n, r, m) + 1))
    _, result = measured(SMALL["llava-1.5-7b"])
    pruned = result.cases[1]
    assert pruned.visual_slots == pruned.promised_slots + 3


@pytest.mark.parametrize("name", SMALL)
def test_tokens_are_the_models_own(name):
    shape = SMALL[name]
    about = made(shape, config_for(shape))
    inputs = {k: v for k, v in about.request.inputs.items() if k[:5] in ("pixel", "image")}
    with torch.no_grad():
        features = about.family.base.get_image_features(**inputs, return_dict=True).pooler_output
    assert [len(part) for part in features] == [tokens_of(shape, None)[1]]
    assert about.request.image_tokens == len(features[0])


def test_the_real_sizes():
    """Parameters as the hub counts them; tokens as the papers do (separators beside them)."""
    assert count_parameters(SHAPES["llava-next-7b"].config()) == 7_566_747_648
    assert tokens_of(SHAPES["llava-next-7b"], None)[:2] == (5, 2880 + 48)
    assert tokens_of(SHAPES["llava-1.5-7b"], None)[:2] == (1, 576)
    assert tokens_of(SHAPES["mid"], None)[:2] == (5, 1479)
    assert tokens_of(SHAPES["llava-next-7b"], (336, 1008))[0] == 4


def test_the_first_token_is_encoder_and_prefill_of_smaller_pictures_too():
    """A picture of 224 x 224 pixels has 64 tokens of 28 x 28; a quarter of them are 112 x 112."""
    shape = SHAPES["mid-qwen"].shrunk()
    config = config_for(shape, stages=((0, 0.25),))
    about = made(shape, config, new_tokens=2, batch=2)
    assert (about.request.image_tokens, about.smaller.image_tokens) == (64, 16)
    found = benching.bench(
        about.family, config, about.request, new_tokens=2, rounds=1, more=about.more
    )
    full, pruned, _, resized = found.cases
    assert (resized.name, resized.image_tokens, resized.mean_retention) == ("resized", 16, 0.25)
    assert resized.visual_slots == pruned.visual_slots == resized.promised_slots
    assert resized.kv_ratio == 0.25
    for case in found.cases:
        assert case.first.median == pytest.approx(case.encode.median + case.prefill.median)
    # Both leave the same language model's work; of the tower's, smaller pictures leave a quarter
    # of what is linear, and less of attention.
    assert pruned.tower_flops == full.tower_flops > 4 * resized.tower_flops
    assert pruned.language_flops == pytest.approx(resized.language_flops)
    assert resized.first_flops_ratio < pruned.first_flops_ratio < 1
    assert full.first_flops_ratio == 1 == full.first_ratio.median


def test_a_config_that_makes_pictures_smaller_is_measured_so(tmp_path):
    """80 x 80 pixels are 5 x 5 tokens of 8 x 8 under its limit of 1,600; 0.4 of them 4 x 4."""
    folder = save_qwen(tiny_family("qwen2_5_vl"), tmp_path / "qwen")
    about = {"model": ModelRef(model_type="qwen2_5_vl", num_layers=6), "pixels": {"share": 0.7}}
    stages = [{"layer": 2, "retention": 0.5, "scorers": [{"name": "coverage"}]}]
    both = PruningConfig(**about, stages=stages)
    words = ("--model", folder, "--rounds", "1", "--new-tokens", "2", "--threads", "1", "--json",
             "--min-pixels", "64")  # fmt: skip
    ran = call("bench", both.save(tmp_path / "both.json"), *words, "--image-size", "80x80")
    assert ran.status == 0, ran.err
    cases = {case["name"]: case for case in ran.json["cases"]}
    assert list(cases) == ["unpruned", "both", "pruned", "uniform", "resized"]
    assert "received min_pixels=64" in ran.json["note"]
    full, small = cases["unpruned"], cases["both"]
    assert small["image_tokens"] < full["image_tokens"] == cases["pruned"]["image_tokens"]
    kept = small["image_tokens"] / full["image_tokens"] * mean_retention(both.stages, 6)
    for name in ("both", "pruned", "uniform"):
        assert cases[name]["mean_retention"] == pytest.approx(kept)
        assert cases[name]["visual_slots"] == cases[name]["promised_slots"]
    assert cases["resized"]["image_tokens"] == 9 <= kept * 25 < 16
    assert full["tower_flops"] == cases["pruned"]["tower_flops"] > small["tower_flops"]
    only = PruningConfig(**about, stages=[]).save(tmp_path / "only.json")
    ran = call("bench", only, *words, "--image-size", "80x80")
    assert [case["name"] for case in ran.json["cases"]] == ["unpruned", "resized", "uniform"]
    refused("bench", only, "--shape", "mid-qwen", has=("is for qwen2_5_vl of 6",))


def test_the_largest_picture_within_a_count():
    """Counts may jump up again where a smaller picture is cut into other tiles."""
    tiles = {100: 9, 75: 4, 50: 6, 40: 4}

    def count(size):
        return tiles[min(side for side in tiles if side >= size[1])]

    assert largest_within(count, (100, 100), 9) == (100, 100)
    assert largest_within(count, (200, 100), 5) == (150, 75)
    assert largest_within(count, (100, 100), 3) is None
    assert largest_within(lambda size: size[0], (112, 56), 60, unit=28) == (56, 28)
    # A tower of fixed views has no smaller picture: the rival is left out.
    assert largest_within(lambda size: 16, (112, 56), 15) is None
    fixed = SMALL["llava-1.5-7b"]
    assert made(fixed, config_for(fixed)).more == {}


# -- times ---------------------------------------------------------------------------------------


def test_the_parts_add_up_and_the_model_stays_as_it_was():
    shape = SMALL["llava-next-7b"]
    about = made(shape, config_for(shape))
    base, model = about.family.base, about.family.model
    before = dict(base.__dict__), len(model._forward_hooks), len(model._forward_pre_hooks)
    run = Stopwatch(about.family).run(about.request.inputs, 4)
    assert (dict(base.__dict__), len(model._forward_hooks), len(model._forward_pre_hooks)) == before
    assert min(run.encode, run.prefill, run.decode) > 0
    assert run.encode + run.prefill + 3 * run.decode <= run.total
    assert run.lengths == (about.request.image_tokens + 64,) * 4
    assert math.isnan(Stopwatch(about.family).run(about.request.inputs, 1).decode)


def test_rounds_are_interleaved():
    order = []
    cases = {n: lambda n=n: order.append(n) or made_run(1.0) for n in "abc"}
    runs = interleave(cases, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(found) for name, found in runs.items()} == dict.fromkeys("abc", 3)


def made_run(total, decode=0.01, prefill=0.1):
    return Run(0.0, prefill, decode, total, (1,), 1, None)


@pytest.mark.parametrize("n", range(1, 16))
def test_the_interval_holds_the_median(n):
    """Coverage by counting: the true median is between two order statistics."""
    found = spread(range(n))
    cut = int(found.low)
    coverage = 1 - 2 * sum(math.comb(n, k) for k in range(cut + 1)) / 2**n
    assert found.high == n - 1 - cut
    assert found.median == (n - 1) / 2
    if n >= 5:
        assert coverage >= 0.9
        wider = 1 - 2 * sum(math.comb(n, k) for k in range(cut + 2)) / 2**n
        assert wider < 0.9, "the interval could be narrower"


NOISE = (0.99, 1.0, 1.01, 1.0, 0.995)


def case(first, step, new=10):
    """Five rounds of one case, all of them slow or fast alike."""
    return [made_run((first + (new - 1) * step) * s, step * s) for s in NOISE]


@pytest.mark.parametrize(
    ("after", "word", "at"),
    [
        (case(0.5, 0.01), "pays", None),
        (case(0.5, 0.02), "pays", 51),
        (case(1.0, 0.01), "breaks even", None),
        (case(1.5, 0.01), "does not pay", None),
        (case(1.02, 0.005), "pays", 5),
        (case(1.2, 0.009), "does not pay", 201),
    ],
)
def test_verdicts_follow_from_the_times(after, word, at):
    found = judge(case(1.0, 0.01), after, 10)
    assert (found.word, found.at_new_tokens) == (word, at)
    assert found.text.startswith(word)


def test_a_difference_within_the_spread_is_none():
    noisy = [made_run(1.09 * s, 0.01) for s in (0.8, 1.3, 0.7, 1.2, 1.0)]
    found = judge(case(1.0, 0.01), noisy, 10)
    assert found.word == "breaks even"
    assert found.at_new_tokens is None
    assert "first token unchanged" in found.text
    assert "round(s)" in judge(case(1.0, 0.01)[:2], noisy[:2], 10).text


def test_what_ratios_and_medians_tell_apart_is_no_gain():
    """Twelve rounds of fifteen are faster, and yet the median request is slower."""
    before = [made_run(float(k)) for k in range(1, 16)]
    after = [made_run(100.0 if k in (5, 6, 7) else k - 0.1) for k in range(1, 16)]
    assert spread([b.total / a.total for b, a in zip(before, after)]).low > 1
    assert judge(before, after, 10).word == "breaks even"
    # The twin: both tell the same.
    assert judge(before, [made_run(k - 0.1) for k in range(1, 16)], 10).word == "pays"


# -- memory ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(subject, "available", lambda device: 8 << 30)
    monkeypatch.setattr(subject, "build", lambda *a, **k: pytest.fail("built"))
    words = ("bench", "--preset", "topv", "--keep", "0.1", "--shape", "llava-next-7b")
    refused(
        *words, "--batch-size", "8", has=("needs about", "GiB", "8.0 GiB are free", "--shape mid")
    )
    monkeypatch.setattr(subject, "build", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr(subject, "available", lambda device: None)
    ran = call(*words)
    assert ran.status == 2
    assert "out of memory" in ran.err.splitlines()[-1]


def test_needed_memory_is_weights_and_cache():
    config = SHAPES["llava-next-7b"].config()
    weights, cache, work = memory.needed(config, 7_566_747_648, size=2, batch=8, tokens=3000)
    assert weights == 15_133_495_296
    assert cache == 8 * 3000 * 32 * 2 * 8 * 128 * 2
    assert 0 < work < cache * 2


def test_needed_memory_is_that_of_the_peak():
    config = SHAPES["llava-next-7b"].config()

    def needed(**more):
        return memory.needed(config, 1, **{"size": 2, "batch": 1, "tokens": 3000} | more)

    plain, seen = needed()[2], needed(patches=5 * 577, views=5)[2]
    # Many pictures and a short prompt: it is the tower that fills the memory.
    many = needed(tokens=64, patches=64 * 5 * 577, views=64 * 5)[2]
    assert plain < seen < 2 * plain
    assert many > 20 * needed(tokens=64)[2]
    assert needed(eager=True)[2] == plain + 2 * 32 * 3000 * 3000 * 4


def test_a_control_group_bounds_what_is_free(tmp_path):
    def group(folder, names, most, taken):
        folder.mkdir(parents=True)
        for name, value in zip(names, (most, taken)):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text("inactive_file 100\ntotal_inactive_file 100\n")

    group(
        tmp_path / "memory" / "job" / "one",
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2000,
        500,
    )
    assert memory._group_rooms("4:memory:/job/one\n8:pids:/\n", tmp_path) == [1600]
    new = ("memory.max", "memory.current")
    group(tmp_path / "slice", new, "max", 500)
    assert memory._group_rooms("0::/slice/none\n", tmp_path) == []
    group(tmp_path / "slice" / "pod", new, 900, 500)
    assert memory._group_rooms("0::/slice/pod\n", tmp_path) == [500]


def test_peak_memory_sees_what_comes_and_goes():
    peak = memory.Peak(torch.device("cpu"))
    peak.reset()
    before = peak.read()
    if before is None:
        pytest.skip("this system does not let the peak be reset")
    block = torch.ones(64 << 20, dtype=torch.uint8)
    held = peak.read()
    assert held - before > 60 << 20
    del block
    peak.reset()
    assert peak.read() < held - (50 << 20)


# -- a model with a processor ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_a_prompt_is_brought_to_its_length(tiny):
    family = family_of(tiny.model)
    how = {"device": "cpu", "batch": 2, "images": 2, "size": (64, 96)}
    short = processed_request(tiny, family, prompt_tokens=None, **how)
    long = processed_request(tiny, family, prompt_tokens=short.text + 40, **how)
    for request in (short, long):
        ids = request.inputs["input_ids"]
        marks = ids == family.image_token_id
        assert marks.sum(1).tolist() == [request.image_tokens] * 2
        assert ids.shape[1] == request.image_tokens + request.text
        assert request.inputs["attention_mask"].shape == ids.shape
    assert long.text == short.text + 40
    assert long.images == short.images
    with pytest.raises(ConfigError, match=f"allowed {short.text} or more"):
        processed_request(tiny, family, prompt_tokens=1, **how)


def test_a_configs_own_model_is_loaded(tiny, tmp_path):
    depth = tiny.model.config.text_config.num_hidden_layers
    config, _ = load_preset("uniform", model_type="llava_next", num_layers=depth, keep=0.3)
    named = config.model_copy(update={"model": config.model.model_copy(update={"name": "tiny"})})
    path = str(named.save(tmp_path / "c.json"))
    about = loaded_subject(Wanted(path, None, None), Asked(size=(64, 64)), None)
    assert about.config == named
    halved = loaded_subject(Wanted(path, None, 0.5), Asked(size=(64, 64)), None)
    assert mean_retention(halved.config.stages, depth) == pytest.approx(0.5)
    nameless = str(config.save(tmp_path / "d.json"))
    with pytest.raises(ConfigError, match="no model"):
        loaded_subject(Wanted(nameless, None, None), Asked(), None)


# -- the command line --------------------------------------------------------------------------


def test_the_verb(small, tmp_path):
    path = config_for(SMALL["llava-next-7b"]).save(tmp_path / "c.json")
    words = ("--shape", "llava-next-7b", "--rounds", "2", "--new-tokens", "2", "--threads", "1")
    ran = call("bench", path, *words, "--json", "--batch-size", "2", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert ran.json["device"] == device_shown(torch.device("cpu"))
    found = ran.json
    assert found["verdict"]["word"] in ("pays", "breaks even", "does not pay")
    assert [case["name"] for case in found["cases"]] == [
        *("unpruned", "pruned", "uniform", "resized")
    ]
    assert found["batch_size"] == found["rounds"] == 2
    assert found["dtype"] == "float32"
    assert json.dumps(found)
    shown = call("bench", "--preset", "uniform", "--keep", "0.2", *words, "--image-size", "64x32")
    assert shown.status == 0, shown.err
    assert "FLOP ratio" in shown.out
    heading, unpruned, *_ = (
        x.split() for x in shown.out.splitlines() if x.startswith(("case", "unpr"))
    )
    assert "KV MiB" in " ".join(heading)
    assert unpruned[-3] == f"{found['cases'][0]['kv_bytes'] / 2 / 2**20:.1f}"
    assert "to the token" in shown.out
    assert "at this shape" in shown.out or "breaks even" in shown.out


def test_words_that_are_wrong(small, tmp_path):
    path = config_for(SMALL["llava-1.5-7b"]).save(tmp_path / "c.json")
    shape = ("--shape", "llava-next-7b")
    preset = ("--preset", "topv", "--keep", "0.4")
    refused("bench", has=("neither", "--preset"))
    refused("bench", path, *preset, *shape, has=("both",))
    refused("bench", path, *shape, has=("llava of 4", "llava_next of 4", "--preset NAME --keep B"))
    refused("bench", path, "--shape", "mid", has=("llava_next of 24",))
    refused("bench", *preset, "--shape", "llava-next", has=("did you mean 'llava-next-7b'",))
    refused("bench", *preset, *shape, "--model", "tiny", has=("exclude each other",))
    refused("bench", *preset, *shape, "--device-map", "auto", has=("--shape loads no weights",))
    refused("bench", "--preset", "topp", *shape, has=("did you mean 'topv'",))
    refused("bench", "--preset", "topv", "--keep", "2", *shape, has=("keep: received 2",))
    refused("bench", *preset, *shape, "--image-size", "big", has=("--image-size", "672x672"))
    refused("bench", *preset, "--shape", "llava-1.5-7b", "--image-size", "64", has=("64x64", "32"))
    refused("bench", *preset, *shape, "--rounds", "0", has=("--rounds",))
    refused("bench", *preset, *shape, "--device", "gpu", has=("'gpu'", "cpu, cuda"))
    refused("bench", *preset, *shape, "--dtype", "int4", has=("'int4'",))
    refused("bench", *preset, *shape, "--prompt-tokens", "40000", has=("allowed 32768",))
    refused("bench", *preset, has=("no model",))
    assert shapes.shape_named("mid").num_layers == 24


def test_the_gpu_benchmark_needs_no_more_than_a_deployment():
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import gpu"
    loaded, more = loaded_by_step(code, "import typer")
    assert loaded & (SEARCH_ONLY | {"rich", "scipy"}) == set()
    assert more & SEARCH_ONLY == {"typer"}
