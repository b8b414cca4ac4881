"""Selectors, mass, views and exits in the search space."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import GIVEN, PLAIN, names, space

from prunetune.budget import mean_retention
from prunetune.config import PruningConfig, Stage
from prunetune.errors import ConfigError
from prunetune.restorers import RESTORERS, Restorer
from prunetune.scorers import SCORERS, Scorer
from prunetune.selectors import SELECTORS
from prunetune.space.narrowed import FIRST_SCORERS
from prunetune.space.space import Space
from prunetune.space.starts import UNTUNED, first_starts
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.resumed import difference


@st.composite
def points(draw):
    """A space with everything that is new, and a point in it, corners included."""
    found = space(
        keep=draw(st.floats(0.0101, 1.0)),
        num_layers=draw(st.integers(1, 40)),
        max_stages=draw(st.integers(1, 3)),
        per_stage_weights=draw(st.booleans()),
        selectors=tuple(SELECTORS),
        mass=draw(st.sampled_from([(0.0, 1.0), (0.0, 0.25, 0.5, 1.0), (1.0,)])),
        exit=draw(st.booleans()),
        restorers=("none", *RESTORERS),
        scorers=draw(st.sampled_from([GIVEN, tuple(SCORERS)])),
    )
    unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0))
    return found, {name: draw(unit) for name in names(found)}


@settings(max_examples=300, deadline=None)
@given(points())
def test_every_point_is_a_valid_config_on_the_budget_that_encodes_and_decodes_to_itself(point):
    found, units = point
    config = found.decode(units)
    assert PruningConfig.parse(config.model_dump(mode="json")) == config
    assert abs(mean_retention(config.stages, found.facts.num_layers) - found.budget.share) < 1e-9
    assert found.decode(found.encode(config)) == config
    for stage in config.stages:
        beside = stage.restorer is None or type(stage.restorer).keep is Restorer.keep
        assert stage.selector is None or beside


def test_the_round_trip_would_notice_a_lost_selector():
    found = space(exit=True, max_stages=1, scorers=GIVEN)
    units = dict.fromkeys(names(found), 0.9) | {"selector": 0.5, "layer_1": 0.1}
    encoded = found.encode(found.decode(units))
    lost = ("selector", "cover.spatial", "cover.tau", "cover.beta", "cover.text", "scope")
    for name in (*lost, "mass", "exit", "per_crop"):
        assert found.decode({**encoded, name: 0.1}) != found.decode(units), name


def test_top_alone_is_the_space_of_before():
    found = space(**PLAIN, scorers=FIRST_SCORERS, version=1)
    assert {"topv.epsilon", "rescore", "restorer", "separators"} <= set(names(found))
    config = found.decode(dict.fromkeys(names(found), 0.7) | {"restorer": 0.0})
    assert config.version == 1
    assert not any(stage.is_new for stage in config.stages)
    # The twin: what is new adds parameters, and takes none away.
    assert set(names(found)) < set(names(space()))
    assert {"selector", "scope", "mass", "per_crop", "cover.tau"} <= set(names(space()))


def test_all_stages_share_the_selector_and_its_mass():
    found = space(min_stages=3)
    config = found.decode(dict.fromkeys(names(found), 0.55))
    assert len(config.stages) == 3
    assert {stage.selector.name for stage in config.stages} == {"cover"}
    assert {stage.mass for stage in config.stages} == {1.0}


def test_what_no_score_can_change_has_no_scorers():
    found = space(selectors=("cover",), restorers=("none",))
    units = dict.fromkeys(names(found), 0.7)
    blind = found.decode(units | {"cover.beta": 0.0, "cover.delta": 0.0})
    assert all(stage.scorers == () for stage in blind.stages)
    assert found.decode(found.encode(blind)) == blind
    # The twin: with either dial they count.
    assert found.decode(units | {"cover.beta": 0.0}).stages[0].scorers


def test_half_of_all_points_do_not_depend_on_the_prompt():
    found = space(selectors=("cover",), scorers=GIVEN)
    units = dict.fromkeys(names(found), 0.7)
    assert found.decode(units).stages[0].selector.text > 0
    assert found.decode(units | {"cover.text": 0.5}).stages[0].selector.text == 0
    # A model that cannot give the question has no such parameter.
    assert "cover.text" in names(found)
    assert "cover.text" not in names(space(selectors=("cover",), scorers=FIRST_SCORERS))


def test_a_restorer_that_chooses_is_left_out_beside_a_selector():
    found = space(selectors=("top", "cover"), restorers=("uniform_recovery",))
    units = dict.fromkeys(names(found), 0.3)
    assert found.decode(units).stages[0].restorer.name == "uniform_recovery"
    assert found.decode(units | {"selector": 0.9}).stages[0].restorer is None


def test_a_selector_brings_the_scorer_it_uses_or_is_refused(monkeypatch):
    class Fresh(SELECTORS.get("top")):
        name: str = "fresh"

        @property
        def uses_scorers(self):
            return frozenset({"cls_attention"})

    monkeypatch.setitem(SELECTORS._entries(), "fresh", "nowhere:Fresh")
    monkeypatch.setitem(SELECTORS._loaded, "fresh", Fresh)
    found = space(selectors=("fresh",))
    units = dict.fromkeys(names(found), 0.5) | {"weight.coverage": 1.0}
    config = found.decode(units)
    assert {s.name: s.weight for s in config.stages[0].scorers}["cls_attention"] == 0.0
    assert found.decode(found.encode(config)) == config
    with pytest.raises(ConfigError, match="fresh, which uses cls_attention"):
        space(selectors=("fresh",), scorers=("coverage",))


def test_one_view_is_not_ranked_by_view():
    assert "per_crop" in names(space())
    assert "per_crop" not in names(space(model_type="llava"))
    config = space().decode(dict.fromkeys(names(space()), 0.8) | {"selector": 0.1})
    ranked = {s.name: s.per_crop for s in config.stages[0].scorers}
    assert ranked.pop("tile_prior", False) is False
    assert set(ranked.values()) == {True}


@pytest.mark.parametrize("kind", ["keep", "flops"])
def test_an_exit_counts_for_the_budget(kind):
    spec = StudySpec(**{kind: 0.4}, space=SpaceSpec(exit=True))
    found = Space.of(spec, space().facts)
    units = dict.fromkeys(names(found), 0.4)
    stays, leaves = found.decode(units), found.decode(units | {"exit": 0.8})
    assert leaves.stages[-1].retention == 0
    assert leaves.stages[-1].layer >= 11
    assert leaves.stages[0].retention >= stays.stages[0].retention
    for config in (stays, leaves):
        assert found.spent(config).share == pytest.approx(found.budget.share, abs=1e-9)
        cost = found.budget.of(config.stages, 16)
        assert cost == pytest.approx(found.budget.share, abs=1e-6)
    # Where nine of ten tokens shall stay, none can leave.
    full = space(keep=0.99, exit=True)
    assert full.decode(dict.fromkeys(names(full), 1.0)).stages[-1].retention > 0


# What restricts the space.


def test_parts_for_engines():
    layer0 = space(parts="layer-0", selectors=("top", "cover"), exit=False)
    assert not {"stages", "mass", "weight.topv", "rescore"} & set(names(layer0))
    for unit in (0.0, 0.6, 1.0):
        (stage,) = layer0.decode(dict.fromkeys(names(layer0), unit)).stages
        assert (stage.layer, stage.mass) == (0, 0.0)
    flash = space(parts="flash")
    assert "mass" not in names(flash)
    assert {"layer_1", "weight.topv"} <= set(names(flash))
    massive = Stage(layer=0, retention=0.25, scorers=(SCORERS.get("coverage")(),), mass=1.0)
    config = PruningConfig(model=layer0.model_ref(), stages=(massive,))
    assert space().holds(config)
    assert not flash.holds(config)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"selectors": ["cove"]}, "did you mean 'cover'"),
        ({"selectors": []}, "selectors"),
        ({"mass": [2.0]}, "0 to 1"),
        ({"mass": [1.0], "parts": "flash"}, "parts"),
        ({"parts": "layer-0", "layers": [1, 3]}, "layer 0"),
        ({"parts": "layer-0", "exit": True}, "one stage"),
        ({"parts": "vllm"}, "layer-0"),
    ],
)
def test_bad_spaces_are_one_line(data, words):
    with pytest.raises(ConfigError, match=words) as error:
        StudySpec.parse({"space": data})
    assert "\n" not in str(error.value)


def test_presets_with_what_is_turned_off_are_not_held():
    stage = Stage(layer=0, retention=0.25, selector=SELECTORS.get("mmr")())
    config = PruningConfig(model=space().model_ref(), stages=(stage,))
    assert not space().holds(config)
    assert space(selectors=("top", "mmr")).holds(config)


# Studies of before.


def old(spec):
    """Return a spec as a release without selectors wrote it."""
    data = spec.model_dump(mode="json")
    new = ("selectors", "mass", "exit", "per_crop", "parts", "ranges", "version")
    data["space"] = {k: v for k, v in data["space"].items() if k not in new}
    return data


def test_a_study_of_before_means_what_it_meant(tmp_path):
    stored = StudySpec.parse(old(StudySpec()))
    assert stored.space == SpaceSpec(version=1, **PLAIN)
    path = stored.save(tmp_path / "spec.toml")
    assert StudySpec.load(path) == stored
    assert difference(stored, StudySpec.parse(old(StudySpec()))) == []
    # The twin: a new study's own spec, whole or written by hand, has what is new.
    assert StudySpec.parse(StudySpec().model_dump(mode="json")) == StudySpec()
    assert StudySpec.parse({"space": {"max_stages": 2}}).space.selectors == ("top", "cover", "dpp")


def test_new_scorers_do_not_enter_a_study_of_before(monkeypatch):
    class Fresh(Scorer):
        name: str = "fresh"

    monkeypatch.setitem(SCORERS._entries(), "fresh", "nowhere:Fresh")
    monkeypatch.setitem(SCORERS._loaded, "fresh", Fresh)
    before = SpaceSpec(version=1, **PLAIN)
    facts = space(scorers=tuple(SCORERS)).facts
    assert "weight.fresh" not in names(Space(before, 0.25, facts))
    assert "weight.fresh" in names(Space(SpaceSpec(), 0.25, facts))


# Where it starts.


@pytest.mark.parametrize("keep", [0.5, 0.1, 0.05])
def test_the_first_starts_are_covering_sets(keep):
    found = space(keep)
    starts = first_starts(found)
    assert len(starts) == 7
    configs = [found.decode(units) for units in starts.values()]
    assert all(set(units) == set(names(found)) for units in starts.values())
    assert len({config.digest() for config in configs}) == 7
    for config in configs:
        assert mean_retention(config.stages, found.facts.num_layers) == pytest.approx(keep)
        assert {s.selector.kernel for s in config.stages} == {"exp"}
        assert {s.mass for s in config.stages} == {1.0}
        assert config.stages[0].layer == 0
        for stage in config.stages[1:]:
            assert "last_query" in [scorer.name for scorer in stage.scorers]
    assert [len(config.stages) for config in configs] == [3, 3, 2, 1, 1, 1, 1]
    untuned = found.decode(starts[UNTUNED])
    [only] = untuned.stages
    assert (only.mass, only.selector.spatial, only.selector.tau) == (1.0, 0.3, 0.4)
    assert (only.scorers, untuned.separators) == ((), "drop")
    assert {c.separators for c in configs} == {"keep", "drop"}


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({"mass": (0.0,)}, 7),
        ({"max_stages": 2}, 5),
        ({"mass": (0.0,), "max_stages": 1}, 4),
        ({"separators": ("drop",)}, 6),
        ({"scorers": FIRST_SCORERS}, 6),
        ({"selectors": ("top",)}, 0),
        ({"layers": (1, 4)}, 0),
        ({"parts": "layer-0"}, 4),
    ],
)
def test_a_start_that_the_space_does_not_hold_is_left_out(spec, count):
    assert len(first_starts(space(0.25, **spec))) == count


@given(st.data())
def test_a_range_of_the_highest_scores_makes_them_a_selector(data):
    """They have none by default, so that a config of version 1 stays one."""
    found = space(ranges={"top.scope": ["view"]}, selectors=("top", "cover"))
    units = {name: data.draw(st.floats(0, 1, exclude_max=True), name) for name in names(found)}
    config = found.decode(units | {"selector": 0.1})
    assert PruningConfig.parse(config.model_dump(mode="json")) == config
    assert found.decode(found.encode(config)) == config
    for stage in config.stages:
        assert (stage.selector.name, stage.selector.scope) == ("top", "view")
        assert stage.restorer is None or type(stage.restorer).keep is Restorer.keep
    # The twin: without the range.
    plain = space(selectors=("top", "cover"))
    before = plain.decode(dict.fromkeys(names(plain), 0.5) | {"selector": 0.1})
    assert {stage.selector for stage in before.stages} == {None}
    # A config of the plain space is encoded as the nearest one.
    near = found.decode(found.encode(before))
    assert near.stages[0].selector.scope == "view"
