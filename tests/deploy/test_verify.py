"""``verify``: what a deployment would measure, against what the search measured."""

import json
import shutil

import pytest
from cli_runner import call, plain_set, refused, write_set

from prunetune.calibration import load_calibration, load_sides
from prunetune.config import ModelRef, Provenance, PruningConfig
from prunetune.deploy import load_splits, meter, verify
from prunetune.measure.evaluator import Evaluator
from prunetune.models import EMBEDDED, load_model
from prunetune.models.fingerprint import weights_digest
from prunetune.runtime.choice import choose

FAST = ("--threads", "1")
STAGES = (
    {
        "layer": 2,
        "retention": 0.6,
        "scorers": [{"name": "topv"}, {"name": "coverage", "weight": 0.4}],
        "restorer": {"name": "uniform_recovery", "every": 5},
    },
    {"layer": 5, "retention": 0.2},
    {"layer": 9, "retention": 0.07, "scorers": [{"name": "last_query", "weight": -0.5}]},
)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "set", calibration=6, held_out=3)


@pytest.fixture(scope="module")
def config(tiny, source):
    """A config of three stages whose provenance the search's own evaluator measured."""
    samples, _ = load_calibration(str(source), seed=5, samples=4)
    depth = tiny.model.config.text_config.num_hidden_layers
    model = ModelRef(
        model_type="llava_next", num_layers=depth, name="tiny", fingerprint=tiny.fingerprint
    )
    bare = PruningConfig(model=model, stages=STAGES, separators="drop")
    results = measured(tiny, samples, bare)
    made = Provenance(
        gap=sum(r.gap for r in results) / len(results),
        seed=5,
        calibration_digest=samples.digest(),
        weights_digest=weights_digest(tiny.model),
    )
    return bare.model_copy(update={"provenance": made})


def measured(loaded, samples, config):
    evaluator = Evaluator(loaded, samples, deepest=2, batch_size=16)
    return [r for batch in evaluator.evaluate(config) for _, r in sorted(batch)]


@pytest.fixture
def saved(config, tmp_path):
    return config.save(tmp_path / "c.json")


def test_the_deployment_path_reproduces_the_search(tiny, source, config):
    splits = load_splits(config, str(source))
    assert splits.same
    assert len(splits.calibration) == 4
    assert len(splits.held_out) == 3
    seen = []
    found = verify(config, tiny, splits, batch_size=16, progress=seen.append)
    assert seen == [4, 7]
    assert found.reproduced
    assert abs(found.difference) <= 1e-6 == found.tolerance
    for split, scores in (
        (splits.calibration, found.calibration),
        (splits.held_out, found.held_out),
    ):
        results = measured(tiny, split, config)
        count = len(results)
        assert scores.samples == count
        assert scores.gap == pytest.approx(sum(r.gap for r in results) / count, abs=1e-6)
        assert scores.kl == pytest.approx(sum(r.kl for r in results) / count, abs=1e-4)
        assert scores.top1_agreement == sum(r.agrees for r in results) / count
        answered = [r.correct for r in results if r.correct is not None]
        assert scores.accuracy == sum(answered) / len(answered)
    assert found.counts_hold
    shares = [1.0] * 2 + [0.6] * 3 + [0.2] * 4 + [0.07] * (len(found.layers) - 9)
    assert [layer.retention for layer in found.layers] == shares
    assert all(layer.worst <= 1 for layer in found.layers)
    assert found.calibration.mean_retention == pytest.approx(sum(shares) / len(shares), abs=0.01)


def test_batches_of_another_size_change_little(tiny, source, config):
    found = verify(config, tiny, load_splits(config, str(source)), batch_size=3)
    assert found.counts_hold
    assert found.difference == pytest.approx(0, abs=1e-4)


def test_wrong_counts_are_seen(tiny, source, config, monkeypatch):
    right = choose.keep_count
    monkeypatch.setattr(
        choose, "keep_count", lambda n, r, alive: min(alive, right(n, r, alive) + 2)
    )
    found = verify(config, tiny, load_splits(config, str(source)))
    assert not found.counts_hold
    assert not found.reproduced


def test_a_cache_longer_than_the_counts_is_seen(tiny, source, config, monkeypatch):
    run = meter._generate

    def longer(*args):
        found = run(*args)
        found.cached[-1] += 1
        return found

    monkeypatch.setattr(meter, "_generate", longer)
    assert not verify(config, tiny, load_splits(config, str(source))).counts_hold


@pytest.mark.parametrize("searched_with_other", [True, False])
@pytest.mark.parametrize("samples", [None, 5])
def test_held_out_data_of_its_own_leaves_the_calibration_samples_as_they_were(
    config, tmp_path, searched_with_other, samples
):
    data, other = plain_set(tmp_path / "a", range(8)), plain_set(tmp_path / "b", range(6, 11))
    used = load_sides(data, other if searched_with_other else None, seed=5, samples=samples)
    made = config.provenance.model_copy(update={"calibration_digest": used[0].digest()})
    studied = config.model_copy(update={"provenance": made})
    splits = load_splits(studied, data, held_out=other)
    assert splits.same
    assert splits.calibration.digest() == used[0].digest()
    # Those that the calibration data shows as well are left out.
    seen = {pixels for sample in splits.calibration for pixels in sample.pixels()}
    assert len(splits.held_out) >= 3
    assert not any(seen & set(sample.pixels()) for sample in splits.held_out)
    # The twin: without the other data only a study that did without it is told again.
    if samples is None:
        assert load_splits(studied, data).same is not searched_with_other


def test_other_samples_are_not_compared(tiny, source, config, tmp_path):
    other = write_set(tmp_path / "other", calibration=3)
    splits = load_splits(config, str(other))
    found = verify(config, tiny, splits)
    assert not splits.same
    assert found.reproduced is None
    assert "--data" in found.reason
    bare = config.model_copy(update={"provenance": Provenance()})
    assert "no gap" in verify(bare, tiny, splits).reason


def test_the_gate(saved, source):
    words = ("verify", saved, "--data", source, *FAST)
    ran = call(*words, "--json")
    assert ran.status == 0, ran.err
    found = ran.json
    assert found["reproduced"]
    assert found["passed"]
    assert found["within_max_gap"] is None
    assert found["same_weights"] is True
    assert "weights" not in ran.err
    # Named as `search --json` does.
    assert 0 <= found["held_out"]["top1_agreement"] <= 1
    gap = found["gap"]
    fine = call(*words, "--max-gap", repr(gap * 1.001))
    assert fine.status == 0
    assert "is at most --max-gap" in fine.out
    assert "reproduced" in fine.out
    assert "layers" in fine.out
    assert "held-out" in fine.out
    failed = call(*words, "--max-gap", repr(gap * 0.999), "--json")
    assert failed.status == 1
    assert failed.err == ""
    assert not failed.json["passed"]
    assert failed.json["within_max_gap"] is False


def test_a_fine_tune_is_measured_against_the_provenance(saved, source, tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(EMBEDDED, folder)
    loaded = load_model("tiny")
    for norm in (
        layer.post_attention_layernorm for layer in loaded.model.model.language_model.layers
    ):
        norm.weight.data *= 1.05
    loaded.model.save_pretrained(folder)
    ran = call("verify", saved, "--model", folder, "--data", source, *FAST, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["reproduced"] is False
    assert abs(ran.json["difference"]) > 1e-6
    assert ran.json["same_weights"] is False
    assert ran.err.count("searched with other weights (tiny)") == 1


def test_flags_that_are_wrong(saved, tmp_path):
    refused("verify", saved, "--max-gap", "-1", has=("--max-gap", "-1"))
    refused("verify", saved, "--samples", "0", has=("--samples", "0"))
    refused("verify", saved, "--data", tmp_path / "no", has=("does not exist",))
    refused("verify", saved, "--model", "nope", has=("unknown model",))
    data = json.loads(saved.read_text())
    data["model"]["model_type"] = "llava"
    saved.write_text(json.dumps(data))
    refused("verify", saved, "--samples", "1", *FAST, has=("'llava'", "'llava_next'"))
