"""Budgets of every kind: what they cost is met by every point, exceeded by none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunetune.budget import (
    KINDS,
    Budget,
    ModelFacts,
    flops_ratio,
    make_budget,
    mean_retention,
    rebudget,
)
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.presets import load_preset, preset_names
from prunetune.scorers import SCORERS
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.resumed import difference


def facts(num_layers=16, image=336.0, text=20.0, kv_heads=2, width=128, value_bytes=2):
    return ModelFacts(
        "llava_next", num_layers, width, 4 * width, 4, kv_heads, width // 4, image, text,
        scorers=tuple(SCORERS), value_bytes=value_bytes,
    )  # fmt: skip


@st.composite
def models(draw):
    return facts(
        draw(st.integers(1, 40)),
        draw(st.floats(16, 8000)),
        draw(st.floats(0, 500)),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.sampled_from([16, 128, 4096])),
        draw(st.sampled_from([1, 2, 4])),
    )


@st.composite
def spaces(draw, ranges=False):
    """A space of any kind of budget that some schedule can meet, and a point in it."""
    model, kind = draw(models()), draw(st.sampled_from(KINDS))
    whole = make_budget(kind, 0.5, model)
    least = whole.least(0, model.num_layers)
    low = least + draw(st.floats(0.0, 1.0)) * (1.0 - least)
    high = low + draw(st.floats(0.0, 1.0)) * (1.0 - low) if ranges else low
    made = Space(
        SpaceSpec(max_stages=draw(st.integers(1, 3))), whole.at(low), model, whole.at(high)
    )
    unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0))
    return made, {d.name: draw(unit) for d in made.dimensions()}


def one_token_more(config, model):
    """Return the config with one more token of the mean prompt in its last stage."""
    last = config.stages[-1]
    more = min(1.0, last.retention + 1.0 / model.image_tokens)
    return (*config.stages[:-1], last.model_copy(update={"retention": more}))


def cost(kind, stages, model):
    return (
        flops_ratio(stages, model) if kind == "flops" else mean_retention(stages, model.num_layers)
    )


@given(spaces())
def test_every_point_meets_the_budget_within_a_token_and_none_exceeds_it(drawn):
    space, units = drawn
    config, budget = space.decode(units), space.budget
    assert PruningConfig.parse(config.model_dump(mode="json")) == config
    spent = cost(budget.kind, config.stages, space.facts)
    assert spent <= budget.share + 1e-11
    more = cost(budget.kind, one_token_more(config, space.facts), space.facts)
    assert more > budget.share - 1e-9 or config.stages[-1].retention == 1.0
    assert spent == pytest.approx(budget.share, abs=1e-9)
    assert all(a.retention >= b.retention for a, b in zip(config.stages, config.stages[1:]))
    assert min(s.retention for s in config.stages) > space.spec.floor - 1e-6


@given(spaces())
def test_a_point_comes_back_from_its_config(drawn):
    space, units = drawn
    config = space.decode(units)
    again = space.decode(space.encode(config))
    for one, other in zip(config.stages, again.stages, strict=True):
        assert one.layer == other.layer
        assert one.retention == pytest.approx(other.retention, abs=1e-6)


@given(spaces(ranges=True))
def test_every_point_of_a_range_meets_its_own_budget_inside_the_range(drawn):
    space, units = drawn
    config = space.decode(units)
    budget = space.budget_at(units.get("budget", 0.5))
    assert space.least.share <= budget.share <= space.most.share
    spent = cost(budget.kind, config.stages, space.facts)
    assert budget.share - 1e-9 <= spent <= budget.share + 1e-11


def test_the_twin_a_schedule_for_one_budget_misses_another():
    model = facts()
    space = Space(SpaceSpec(), make_budget("flops", 0.3, model), model)
    config = space.decode({d.name: 0.5 for d in space.dimensions()})
    assert flops_ratio(config.stages, model) == pytest.approx(0.3, abs=1e-9)
    assert abs(mean_retention(config.stages, 16) - 0.3) > 0.01
    assert flops_ratio(one_token_more(config, model), model) > 0.3 + 1e-4


@given(models(), st.floats(0.0, 1.0))
def test_a_layers_cost_is_the_flops_counted_layer_by_layer(model, retention):
    budget = make_budget("flops", 0.5, model)
    stages = [type("Step", (), {"layer": 0, "retention": retention})()]
    assert budget.of(stages, model.num_layers) == pytest.approx(
        flops_ratio(stages, model), rel=1e-9
    )
    assert budget.retention(budget.layer_cost(retention)) == pytest.approx(retention, abs=1e-7)


def test_the_visual_kv_cache_by_hand():
    # 2 (keys, values) x 16 layers x 2 heads x 32 wide x 336 tokens x 2 bytes.
    model = facts()
    assert model.kv_mib == 2 * 16 * 2 * 32 * 336 * 2 / 2**20
    budget = make_budget("kv_mib", model.kv_mib / 4, model)
    assert (budget.share, budget.value) == (0.25, model.kv_mib / 4)
    assert facts(value_bytes=4).kv_mib == 2 * model.kv_mib
    assert facts(kv_heads=1).kv_mib == model.kv_mib / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 3])
def test_the_smallest_attainable_value_is_named_and_can_be_attained(kind, first):
    model = facts()
    spec = SpaceSpec(layers=(first, 15))
    with pytest.raises(ConfigError) as error:
        Space(spec, make_budget(kind, 1e-6, model), model)
    assert "\n" not in str(error.value)
    named = float(str(error.value).rpartition(" ")[2])
    space = Space(spec, make_budget(kind, named, model), model)
    space.decode({d.name: 0.5 for d in space.dimensions()})
    with pytest.raises(ConfigError):
        Space(spec, make_budget(kind, named * 0.99, model), model)
    with pytest.raises(ConfigError, match="allowed"):
        Space(spec, make_budget(kind, 1e6, model), model)


@pytest.mark.parametrize("kind", ["flops", "kv_mib"])
@pytest.mark.parametrize("name", preset_names())
def test_baselines_are_moved_onto_the_same_budget(kind, name):
    model = facts()
    budget = make_budget(kind, 0.3 if kind == "flops" else 0.3 * model.kv_mib, model)
    config, _ = load_preset(name, model_type="llava_next", num_layers=16, keep=budget)
    assert cost(kind, config.stages, model) == pytest.approx(0.3, abs=1e-9)
    assert cost(kind, config.stages, model) <= 0.3 + 1e-11


def test_a_preset_that_cannot_meet_a_flops_budget_says_what_it_can():
    model = facts()
    with pytest.raises(ConfigError, match=r"flops: received 0\.08, which last_query") as error:
        load_preset(
            "fastv", model_type="llava_next", num_layers=16, keep=make_budget("flops", 0.08, model)
        )
    named = float(str(error.value).partition("where ")[2].split()[0])
    assert named == pytest.approx(make_budget("flops", 0.5, model).least(1, 16), abs=1e-4)
    moved, _ = rebudget(
        load_preset("fastv", model_type="llava_next", num_layers=16)[0],
        make_budget("flops", named, model),
        16,
    )
    assert moved.stages[0].layer == 1


def test_a_keep_budget_is_what_a_number_is():
    assert Budget("keep", 0.25) == make_budget("keep", 0.25, facts())
    space, other = (Space(SpaceSpec(), b, facts()) for b in (0.25, Budget("keep", 0.25)))
    units = {d.name: 0.3 for d in space.dimensions()}
    assert space.decode(units) == other.decode(units)


# In the study spec.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"flops": 0.0}, ("flops", "above 0 and below 1")),
        ({"flops": 1.0}, ("flops", "below 1")),
        ({"flops": math.nan}, ("flops", "nan")),
        ({"kv_mib": -1}, ("kv_mib", "-1")),
        ({"kv_mib": math.inf}, ("kv_mib", "inf")),
        ({"keep": 0.3, "flops": 0.3}, ("keep and flops", "give one")),
        ({"keep": 0.3, "up_to": 0.4}, ("0.3:0.4", "pareto")),
        ({"objective": "pareto", "keep": 0.3}, ("0.3", "0.05:0.5")),
        ({"objective": "pareto", "keep": 0.3, "up_to": 0.2}, ("0.3:0.2",)),
        ({"objective": "pareto", "flops": 0.3, "up_to": 1.2}, ("1.2", "below 1")),
        ({"objective": "pareto", "trial_pruner": "wilcoxon"}, ("trial_pruner", "two objectives")),
        ({"objective": "pareto", "sampler": "cmaes"}, ("cmaes", "nsga2")),
        ({"patience": -1}, ("patience", "-1")),
    ],
)
def test_specs_that_are_none(data, words):
    with pytest.raises(ConfigError) as error:
        StudySpec.parse(data)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_names_tell_the_budget():
    assert StudySpec().keep == 0.25
    named = {
        "m/keep0.25/cosine": {},
        "m/flops0.3/cosine": {"flops": 0.3},
        "m/kv12mib/kl": {"kv_mib": 12, "metric": "kl"},
        "m/keep0.05-0.5/cosine": {"objective": "pareto"},
        "m/flops0.1-0.6/cosine": {"objective": "pareto", "flops": 0.1, "up_to": 0.6},
    }
    for name, fields in named.items():
        spec = StudySpec(model="m", **fields)
        assert spec.study_name == name
        assert StudySpec.parse(spec.model_dump(mode="json")) == spec


def test_a_budget_survives_toml_and_a_flag_of_another_kind_replaces_it(tmp_path):
    path = StudySpec(flops=0.3, patience=7).save(tmp_path / "spec.toml")
    assert StudySpec.load(path).budget == {"flops": 0.3}
    other = StudySpec.load(path, {"kv_mib": 12.0})
    assert (other.budget, other.patience) == ({"kv_mib": 12.0}, 7)
    wide = StudySpec(objective="pareto").save(tmp_path / "wide.toml")
    assert StudySpec.load(wide).budget == {"keep": [0.05, 0.5]}
    assert difference(StudySpec.load(path), other) == [
        "flops (0.3 -> None)",
        "kv_mib (None -> 12.0)",
    ]
    assert difference(other, other.model_copy(update={"patience": 9})) == []


# From the command line to the exported file.


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    from cli_runner import call, write_set

    data = write_set(tmp_path_factory.mktemp("budget") / "data", calibration=3)
    out = tmp_path_factory.mktemp("budget") / "run"
    words = ["search", "--data", data, "--out", out, "--threads", 1, "--trials", 2]
    ran = call(*words, "--flops", 0.3, "--stages", "2", "--json")
    assert ran.status == 0, ran.err
    return out, words, ran.json


def test_a_search_on_a_flops_budget_from_end_to_end(searched):
    _, _, found = searched
    assert found["study"] == "tiny/flops0.3/cosine"
    assert found["budget"] == {"flops": 0.3}
    assert found["best"]["flops_ratio"] == pytest.approx(0.3, abs=1e-9)
    assert found["best"]["mean_retention"] != pytest.approx(0.3, abs=1e-3)
    rows = [row for row in found["baselines"] if row["name"] != "resize"]
    assert all(row["flops_ratio"] == pytest.approx(0.3, abs=1e-9) for row in rows)
    made = PruningConfig.load(found["config"]).provenance
    assert made.budget == {"flops": 0.3}
    assert made.flops_ratio == found["best"]["flops_ratio"]


def test_a_budget_that_the_scorers_cannot_meet_is_refused_at_once(searched, monkeypatch):
    from cli_runner import refused

    from prunetune.measure import evaluator as objective

    monkeypatch.delattr(objective, "Evaluator")  # nothing may be computed before
    out, words, _ = searched
    words = [*words[:4], out.parent / "other", *words[5:]]
    line = refused(*words, "--flops", 0.05, "--scorers", "topv", has=("flops: received 0.05",))
    assert float(line.rpartition(" ")[2]) > 0.05


def test_a_flops_study_is_resumed_on_its_budget_only(searched):
    from cli_runner import call, refused

    out, words, _ = searched
    refused(*words, "--flops", 0.4, "--stages", "2", has=("flops (0.3 -> 0.4)",))
    refused(*words, "--keep", 0.3, "--stages", "2", has=("flops (0.3 -> None)", "keep"))
    assert call("status", out, "--json").json["budget"] == {"flops": 0.3}
