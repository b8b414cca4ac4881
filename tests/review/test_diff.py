"""``diff``: what changed between two configs or trials."""

import json

import pytest
from boards import make_study
from cli_runner import call, refused, write_set
from fakes import Fake, spec
from hypothesis import given
from hypothesis import strategies as st

from prunetune.config import ModelRef, Provenance, PruningConfig, Stage
from prunetune.review.compare.diff import aligned, changes
from prunetune.review.compare.paired import Difference
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec
from prunetune.study.study import run_search

OLD = (
    {
        "layer": 2,
        "retention": 0.31,
        "scorers": [{"name": "cls_attention", "weight": 0.3}, {"name": "coverage"}],
        "restorer": {"name": "uniform_recovery", "every": 4},
    },
    {"layer": 12, "retention": 0.12},
)
NEW = (
    {
        "layer": 2,
        "retention": 0.31,
        "scorers": [{"name": "cls_attention", "weight": -0.1}, {"name": "topv", "weight": 0.5}],
    },
    {"layer": 15, "retention": 0.08},
)


def config(stages, **more):
    model = ModelRef(model_type="llava_next", num_layers=16, name="tiny")
    return PruningConfig(model=model, stages=stages, **more)


def words(one, two):
    return [change.words for change in changes(one, two)]


def test_every_change_is_said_in_words():
    assert words(config(OLD), config(NEW, separators="drop")) == [
        "first stage restores nothing any more (uniform_recovery (every 4) before)",
        "second stage moved from layer 12 to 15",
        "second stage keeps 8% instead of 12%",
        "in every stage: cls_attention's score weight 0.3 -> -0.1",
        "in every stage: coverage no longer scores (score weight was 1)",
        "in every stage: topv scores too, with score weight 0.5",
        "separators are dropped instead of kept",
    ]


def test_stages_that_come_and_go_are_told_apart_from_stages_that_move():
    three = (OLD[0], {"layer": 8, "retention": 0.2}, OLD[1])
    assert words(config(OLD), config(three)) == ["second stage added: layer 8, keeps 20%"]
    assert words(config(three), config(OLD)) == ["second stage removed: layer 8, keeps 20%"]
    scored = (OLD[0], OLD[1] | {"scorers": [{"name": "last_query", "per_crop": True}]})
    assert words(config(OLD), config(scored)) == [
        "second stage has its own scores (last_query) instead of the stage before's"
    ]
    whole = (OLD[0], OLD[1] | {"scorers": [{"name": "last_query"}]})
    assert words(config(scored), config(whole)) == [
        "second stage last_query ranks over the whole image instead of inside each crop"
    ]


def test_a_difference_smaller_than_its_digits_is_still_seen():
    near = (OLD[0], OLD[1] | {"retention": 0.12000001})
    assert words(config(OLD), config(near)) == ["second stage keeps 12.000001% instead of 12%"]


def test_equal_configs_have_no_changes_whatever_their_provenance():
    assert words(config(OLD), config(OLD, provenance=Provenance(gap=0.1))) == []


SPACE = Space(SpaceSpec(per_stage_weights=True), 0.25, Fake().facts())
POINTS = st.fixed_dictionaries(
    {d.name: st.sampled_from((0.0, 0.2, 0.5, 0.8, 0.99)) for d in SPACE.dimensions()}
)


@given(POINTS, POINTS)
def test_no_change_is_told_exactly_where_the_digests_are_equal(one, two):
    a, b = SPACE.decode(one), SPACE.decode(two)
    assert (changes(a, b) == []) == (a.digest() == b.digest())
    assert changes(a, a) == []


@given(st.lists(st.integers(0, 40), unique=True, max_size=5), st.data())
def test_stages_are_paired_in_order_and_as_near_as_can_be(layers, data):
    from itertools import combinations

    others = data.draw(st.lists(st.integers(0, 40), unique=True, max_size=5))
    a, b = ([Stage(layer=k, retention=0.5) for k in sorted(x)] for x in (layers, others))
    pairs = aligned(a, b)
    both = [(i, j) for i, j in pairs if i is not None and j is not None]
    assert both == sorted(both)
    assert len(both) == min(len(a), len(b))
    assert {i for i, _ in pairs if i is not None} == set(range(len(a)))
    assert {j for _, j in pairs if j is not None} == set(range(len(b)))
    short, long = sorted((a, b), key=len)
    least = min(
        sum(abs(x.layer - y.layer) for x, y in zip(short, chosen))
        for chosen in combinations(long, len(short))
    )
    assert sum(abs(a[i].layer - b[j].layer) for i, j in both) == least


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study without a model: its trials hold configs, its config file a provenance."""
    out = tmp_path_factory.mktemp("run")
    run_search(spec(trials=12), Fake(), Fake(seed=1), out=out)
    return out


def test_trials_studies_and_files_are_compared(run):
    found = call("diff", f"{run}:0", run, "--json").json
    best = found["b"]["name"].rpartition(":")[2]
    chosen = json.loads((run / "config.json").read_text())["provenance"]
    assert int(best) == chosen["trial"]
    assert found["b"]["figures"]["held_out_gap"] == chosen["held_out_gap"]
    assert found["a"]["figures"]["gap"] is not None
    assert 0 <= found["a"]["figures"]["top1_agreement"] <= 1
    assert found["changes"]
    same = call("diff", run, run / "config.json")
    assert same.status == 0
    assert "A and B prune the same." in same.out
    both = call("diff", run, run / "study.db", "--trial", 0, "--trial", best, "--json").json
    assert both["a"]["name"].endswith(":0")
    assert both["b"]["name"].endswith(f":{best}")
    assert both["changes"] == found["changes"]


def test_bad_input_is_one_line(run, tmp_path):
    refused("diff", run, has=("B",))
    refused("diff", run, tmp_path / "no", has=("no", "does not exist", "STUDY:N"))
    refused("diff", f"{run}:99", run, has=("99", "0 to "))
    refused("diff", f"{run}:0", f"{run}:1", "--trial", 2, has=("--trial",))
    refused("diff", run, run / "config.json", "--trial", 0, "--trial", 1, has=("--trial",))
    refused("diff", run, run, "--trial", -1, has=("--trial", "-1"))
    refused("diff", run, run, "--study", "no", has=("no",))
    refused("diff", run, run, "--data", "tiny", has=("--data", "--measure"))
    refused("diff", run, run, "--measure", 0, has=("--measure",))
    (tmp_path / "text.json").write_text("{")
    refused("diff", run, tmp_path / "text.json", has=("text.json", "not JSON"))
    (tmp_path / "folder").mkdir()
    refused("diff", run, tmp_path / "folder", has=("study.db",))
    url = "postgresql://me:secret@127.0.0.1:1/db:3"
    assert "secret" not in refused("diff", run, url, has=("***",))


def test_a_study_of_two_metrics_has_no_one_best_trial(tmp_path):
    make_study(tmp_path, trials=2, directions=2)
    refused(
        "diff",
        tmp_path,
        f"{tmp_path}:1",
        has=("a front of metric and cost", "prunetune status", f"{tmp_path}:"),
    )
    assert call("diff", f"{tmp_path}:0", f"{tmp_path}:1", "--json").json["changes"]


def test_both_are_measured_on_the_same_samples(tmp_path):
    data = write_set(tmp_path / "set")
    full = ({"layer": 1, "retention": 1.0, "scorers": [{"name": "coverage"}]},)
    few = ({"layer": 1, "retention": 0.05, "scorers": [{"name": "coverage"}]},)
    files = [
        config(stages).model_copy(update={"model": _tiny()}).save(tmp_path / f"{name}.json")
        for name, stages in (("full", full), ("few", few))
    ]
    more = ("--measure", 3, "--data", data, "--threads", 1, "--json")
    found = call("diff", *files, *more).json["measured"]
    gap = found["differences"]["gap"]
    # Retention 1 is the identity, so the difference is the other one's gap.
    assert found["a"]["gap"] < 1e-6 < gap["mean"]
    assert gap["mean"] == pytest.approx(found["b"]["gap"], abs=1e-6)
    assert gap["interval"][0] <= gap["mean"] <= gap["interval"][1]
    assert found["verdict"].startswith("A has the lower gap")
    assert found["b"]["flops_ratio"] < found["a"]["flops_ratio"] == 1.0


def _tiny():
    from prunetune.models import load_model

    loaded = load_model("tiny")
    return ModelRef(
        model_type="llava_next",
        num_layers=loaded.model.config.text_config.num_hidden_layers,
        name="tiny",
        fingerprint=loaded.fingerprint,
    )


def test_one_picture_is_never_sure():
    assert Difference(0.1, (0.1, 0.1), pictures=2).sure
    assert not Difference(0.1, (0.1, 0.1), pictures=1).sure
    assert not Difference(0.1, (-0.1, 0.2), pictures=9).sure
