import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.budget import ModelFacts, mean_retention
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.presets import load_preset
from prunetune.scorers import SCORERS
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.resumed import difference

ALL = tuple(SCORERS)


def facts(num_layers=16, scorers=ALL):
    return ModelFacts(
        "llava_next",
        num_layers,
        128,
        512,
        4,
        4,
        32,
        image_tokens=336,
        text_tokens=20,
        scorers=scorers,
    )


def space(keep=0.25, num_layers=16, scorers=ALL, **spec):
    return Space(SpaceSpec(**spec), keep, facts(num_layers, scorers))


@st.composite
def points(draw):
    """A space of any budget and depth, and a point in it, corners included."""
    found = space(
        keep=draw(st.floats(0.0101, 1.0)),
        num_layers=draw(st.integers(1, 40)),
        max_stages=draw(st.integers(1, 3)),
        per_stage_weights=draw(st.booleans()),
        positions=("original", "packed"),
    )
    unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0))
    return found, {d.name: draw(unit) for d in found.dimensions()}


@settings(max_examples=200, deadline=None)
@given(points())
def test_every_point_decodes_to_a_valid_config_that_meets_the_budget(point):
    found, units = point
    config = found.decode(units)
    assert PruningConfig.parse(config.model_dump(mode="json")) == config
    assert abs(mean_retention(config.stages, found.facts.num_layers) - found.budget.share) < 1e-9
    assert all(a.layer < b.layer for a, b in zip(config.stages, config.stages[1:]))
    assert all(a.retention >= b.retention for a, b in zip(config.stages, config.stages[1:]))
    assert min(s.retention for s in config.stages) > found.spec.floor - 1e-9


@settings(max_examples=200, deadline=None)
@given(points())
def test_a_decoded_config_encodes_to_a_point_that_decodes_to_it(point):
    found, units = point
    config = found.decode(units)
    assert found.decode(found.encode(config)) == config


def test_the_round_trip_would_notice_a_lost_parameter():
    found = space()
    units = {d.name: 0.9 for d in found.dimensions()}
    encoded = found.encode(found.decode(units))
    for name in ("keep_1", "layer_1", "weight.coverage", "topv.feature", "separators"):
        other = {**encoded, name: 0.1}
        assert found.decode(other) != found.decode(units), name


def test_a_new_scorer_needs_no_change_here(monkeypatch):
    from typing import Annotated

    from pydantic import Field

    from prunetune.scorers import Scorer, Tunable

    class Fresh(Scorer):
        name: str = "fresh"
        power: Annotated[int, Field(ge=1), Tunable(1, 5)] = 2
        mode: Annotated[str, Tunable(choices=("a", "b"))] = "a"

    monkeypatch.setitem(SCORERS._entries(), "fresh", "nowhere:Fresh")
    monkeypatch.setitem(SCORERS._loaded, "fresh", Fresh)
    found = space(scorers=("fresh",), max_stages=1)
    assert {"weight.fresh", "fresh.power", "fresh.mode"} <= {d.name for d in found.dimensions()}
    config = found.decode({d.name: 0.9 for d in found.dimensions()})
    scorer = config.stages[0].scorers[0]
    assert (scorer.name, scorer.power, type(scorer.power), scorer.mode) == ("fresh", 5, int, "b")
    assert found.decode(found.encode(config)) == config


def test_layer_zero_is_a_candidate_and_keeps_a_usable_scorer():
    found = space()
    units = {d.name: 0.5 for d in found.dimensions()} | {"layer_1": 0.0, "stages": 0.0}
    # Only scorers that need layer states have weight.
    config = found.decode(units | {"weight.topv": 1.0, "weight.last_query": 0.0})
    assert config.stages[0].layer == 0
    assert config.stages[0].retention == 0.25
    assert [s.usable_at(0) for s in config.stages[0].scorers] == [True]


def test_scorers_without_inputs_at_layer_zero_come_back_at_later_stages():
    found = space()
    units = {d.name: 0.6 for d in found.dimensions()}
    config = found.decode(units | {"layer_1": 0.0, "stages": 0.5, "rescore": 1.0})
    first, later = ({s.name for s in stage.scorers} for stage in config.stages)
    assert later - first == {"topv", "last_query", "token_variation", "key_norm"}
    reused = found.decode(units | {"layer_1": 0.0, "stages": 0.5, "rescore": 0.0})
    assert reused.stages[1].scorers == ()


def test_light_weights_are_left_out_and_the_heaviest_is_one():
    found = space(max_stages=1)
    units = {d.name: 0.5 for d in found.dimensions()} | {"layer_1": 0.99}
    units |= {"weight.topv": 0.25, "weight.coverage": 0.504, "weight.cls_attention": 0.6}
    weights = {s.name: s.weight for s in found.decode(units).stages[0].scorers}
    assert weights == {"topv": -1.0, "cls_attention": 0.4}
    assert "coverage" in {
        s.name for s in found.decode(units | {"weight.coverage": 0.51}).stages[0].scorers
    }


def test_equal_directions_of_weights_are_one_config():
    found = space(max_stages=1)
    units = {d.name: 0.5 for d in found.dimensions()}
    one = found.decode(units | {"weight.topv": 0.75, "weight.coverage": 0.7})
    two = found.decode(units | {"weight.topv": 1.0, "weight.coverage": 0.9})
    assert one.digest() == two.digest()
    assert one.digest() != found.decode(units | {"weight.coverage": 0.9}).digest()


@pytest.mark.parametrize("name", ["fastv", "uniform"])
def test_presets_of_plain_scorers_are_points_of_the_space(name):
    found = space(separators=("drop", "keep"))
    config, _ = load_preset(name, model_type="llava_next", num_layers=16, keep=0.25)
    assert found.holds(config)
    decoded = found.decode(found.encode(config))
    assert decoded.model_dump(exclude={"model"}) == config.model_dump(exclude={"model"})


def test_random_is_searched_only_when_asked_for():
    config, _ = load_preset("random", model_type="llava_next", num_layers=16, keep=0.25)
    assert not space().holds(config)
    assert Space(SpaceSpec(scorers=("random",)), 0.25, facts()).holds(config)


def test_packed_positions_only_with_a_first_stage_at_layer_zero():
    found = space(positions=("packed",))
    units = {d.name: 0.5 for d in found.dimensions()}
    assert found.decode(units | {"layer_1": 0.0}).positions == "packed"
    assert found.decode(units | {"layer_1": 1.0}).positions == "original"


def test_the_default_space_stays_small():
    assert len(space(selectors=("top",), mass=(0.0,), per_crop=(False,)).dimensions()) <= 26
    assert len(space().dimensions()) <= 36
    assert len({d.name for d in space().dimensions()}) == len(space().dimensions())


@pytest.mark.parametrize(
    ("spec", "keep", "words"),
    [
        ({"scorers": ("topv",)}, 0.05, ("0.05", "0.0719")),
        ({"layers": (2, 15)}, 0.1, ("0.1", "0.1338")),
        ({"layers": (0, 16)}, 0.25, ("16", "0 to 15")),
        ({"scorers": ("topv",), "layers": (0, 0)}, 0.25, ("topv", "layer 1")),
    ],
)
def test_unattainable_spaces_are_refused_with_what_is_attainable(spec, keep, words):
    with pytest.raises(ConfigError) as error:
        Space(SpaceSpec(**spec), keep, facts())
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_a_scorer_the_model_cannot_give_is_refused_only_when_named():
    given = tuple(name for name in ALL if name != "cls_attention")
    assert "weight.cls_attention" not in {d.name for d in space(scorers=given).dimensions()}
    with pytest.raises(ConfigError, match="cls_attention"):
        Space(SpaceSpec(scorers=("cls_attention",)), 0.25, facts(scorers=given))


# The study spec.


@pytest.mark.parametrize("keep", [0, -1, 1.5, math.nan, math.inf, 0.005])
def test_a_budget_out_of_range_names_what_is_attainable(keep):
    with pytest.raises(ConfigError) as error:
        StudySpec.parse({"keep": keep})
    assert "0.01" in str(error.value)
    assert str(keep) in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kep": 0.3}, "kep"),
        ({"keep": "much"}, "keep"),
        ({"metric": "loss"}, "cosine"),
        ({"trials": 0}, "trials"),
        ({"presets": ["fastw"]}, "fastv"),
        ({"space": {"scorers": ["top"]}}, "topv"),
        ({"space": {"scorers": ["topv", "topv"]}}, "once"),
        ({"space": {"restorers": ["x"]}}, "uniform_recovery"),
        ({"space": {"min_stages": 3, "max_stages": 2}}, "min_stages"),
        ({"space": {"layers": [3, 1]}}, "layers"),
        ({"timeout": math.nan}, "timeout"),
    ],
)
def test_bad_specs_are_one_line_that_names_the_field(data, words):
    with pytest.raises(ConfigError, match=words) as error:
        StudySpec.parse(data)
    assert "\n" not in str(error.value)


def test_a_spec_survives_toml(tmp_path):
    spec = StudySpec(keep=0.1, timeout=60, space=SpaceSpec(layers=(0, 7), scorers=("topv",)))
    assert StudySpec.load(spec.save(tmp_path / "deep" / "spec.toml")) == spec
    assert StudySpec.load(tmp_path / "deep" / "spec.toml", {"keep": 0.2}).keep == 0.2
    merged = StudySpec.load(tmp_path / "deep" / "spec.toml", {"space": {"max_stages": 1}}).space
    assert (merged.max_stages, merged.layers) == (1, (0, 7))


def test_files_that_are_no_spec(tmp_path):
    (tmp_path / "bad.toml").write_text("keep = = 1")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "bad.toml", tmp_path / "none.toml", tmp_path / "file" / "x"):
        with pytest.raises(ConfigError) as error:
            StudySpec.load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot write"):
        StudySpec().save(tmp_path / "file" / "spec.toml")


def test_difference_names_fields_that_matter_only():
    one = StudySpec(keep=0.25, trials=10)
    assert difference(one, one.model_copy(update={"trials": 99, "timeout": 5.0})) == []
    other = one.model_copy(update={"keep": 0.1, "space": SpaceSpec(max_stages=2)})
    assert difference(one, other) == ["keep (0.25 -> 0.1)", "space.max_stages (3 -> 2)"]


def _loads(modules, forbidden):
    code = f"import sys; import {modules}; sys.exit(any(m in sys.modules for m in {forbidden!r}))"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_importing_the_space_loads_neither_torch_nor_optuna():
    ours = "prunetune.spec, prunetune.space.space, prunetune.budget, prunetune.presets"
    assert _loads(ours, ("torch", "optuna")) == 0
    assert _loads("prunetune.config", ("torch", "optuna")) == 1
