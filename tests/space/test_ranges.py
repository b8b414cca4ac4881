"""Ranges of a study for what is searched."""

import pytest
from spaces import names, space

from prunetune.errors import ConfigError
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec, StudySpec


def test_fixed_fields_become_searchable_by_a_range():
    ranges = {
        "topv.sigma": (1.0, 30.0, "log"),
        "topv.iterations": (1, 9),
        "topv.solver": ("end_on_v", "literal"),
        "cls_attention.per_crop": (False, True),
        "cover.power": (1.0, 4.0),
        "uniform_recovery.every": (2, 6),
    }
    plain, found = space(), space(ranges=ranges)
    assert set(ranges) == set(names(found)) - set(names(plain))
    units = dict.fromkeys(names(found), 1.0) | {"selector": 0.0, "restorer": 0.9}
    stage = found.decode(units).stages[-1]
    topv = next(s for s in stage.scorers if s.name == "topv")
    assert (topv.sigma, topv.iterations, topv.solver) == (30.0, 9, "literal")
    middle = found.decode(units | {"topv.sigma": 0.5}).stages[-1]
    assert next(s for s in middle.scorers if s.name == "topv").sigma == pytest.approx(5.477)
    assert found.decode(found.encode(found.decode(units))) == found.decode(units)


def test_one_value_fixes_a_field_and_takes_its_parameter_away():
    found = space(ranges={"topv.feature": (0.5,), "cover.text": (0.0,), "cover.scope": ("view",)})
    left = set(names(space())) - set(names(found))
    assert left == {"topv.feature", "cover.text"}
    units = dict.fromkeys(names(found), 0.5)
    assert found.decode(units).stages[0].selector.scope == "view"
    units |= {"selector": 0.0, "weight.topv": 1.0}
    topv = found.decode(units).stages[-1].scorers
    assert {s.feature for s in topv if s.name == "topv"} == {0.5}


def test_a_scale_of_the_study_replaces_the_fields_own():
    linear = space(ranges={"context_entropy.threshold": (0.0, 50.0, "linear")})
    units = dict.fromkeys(names(linear), 0.5) | {"weight.context_entropy": 1.0, "selector": 0.0}

    def threshold(found):
        return next(
            s.threshold
            for s in found.decode(units).stages[0].scorers
            if s.name == "context_entropy"
        )

    assert threshold(linear) == 25.0
    assert threshold(space()) == pytest.approx(6.141)


@pytest.mark.parametrize("unit", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_retentions_stay_in_their_box(unit):
    ranges = {"retention.1": (0.25, 0.375), "share.2": (0.5333, 1.0)}
    spec = {"stage_layers": (0, 10, 20)}
    boxed, free = space(0.25, 32, ranges=ranges, **spec), space(0.25, 32, **spec)
    units = dict.fromkeys(names(boxed), unit)
    for other in (0.0, 0.5, 1.0):
        first, second, _ = boxed.decode(units | {"keep_2": other}).stages
        assert 0.25 <= first.retention <= 0.375
        assert 0.5332 <= second.retention / first.retention <= 1.0
    # The twin: without a box most of the range lies outside.
    assert free.decode(units | {"keep_1": 1.0}).stages[0].retention > 0.375


def test_a_box_that_the_budget_leaves_no_room_for_gives_way():
    found = space(0.1, ranges={"retention.1": (0.9, 1.0)})
    config = found.decode(dict.fromkeys(names(found), 0.9) | {"layer_1": 0.0})
    assert found.spent(config).share == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"topw.sigma": [1, 2]}, "unknown part 'topw'"),
        ({"topv.sgma": [1, 2]}, "no field 'sgma'"),
        ({"topv.weight": [0, 1]}, "no field 'weight'"),
        ({"topv.sigma": [2, 1]}, "rising"),
        ({"topv.sigma": [0.0, 1]}, "topv.sigma"),
        ({"topv.sigma": [1, 2, 3]}, "rising"),
        ({"topv.sigma": []}, "allowed values"),
        ({"topv.feature": [-1, 1, "log"]}, "below 0"),
        ({"topv.solver": ["x"]}, "topv.solver"),
        ({"topv.solver": ["literal", "literal"]}, "once"),
        ({"topv.iterations": [True, 3]}, "topv.iterations"),
        ({"cls_attention.per_crop": [0, 1]}, "per_crop"),
        ({"retention.3": [0.1, 0.2]}, "stage 3"),
        ({"retention.1": [0.1, 1.2]}, "0 to 1"),
        ({"share.1": [0.1, 0.2]}, "retention.1"),
        ({"keep": [0.1, 0.2]}, "unknown part 'keep'"),
    ],
)
def test_bad_ranges_are_one_line(ranges, words):
    with pytest.raises(ConfigError, match=words) as error:
        StudySpec.parse({"space": {"ranges": ranges}})
    assert "\n" not in str(error.value)


NARROW = {"scorers": ("coverage", "cls_attention"), "selectors": ("top",), "restorers": ("none",)}
FULL = {
    "scorers": ("coverage", "topv"),
    "selectors": ("top", "cover", "mmr"),
    "restorers": ("uniform_recovery",),
}


@pytest.mark.parametrize(
    ("ranges", "part"),
    [
        ({"topv.sigma": (1.0, 30.0)}, "scorers"),
        ({"mmr.relevance": (0.1, 0.2)}, "selectors"),
        ({"uniform_recovery.every": (2, 6)}, "restorers"),
        ({"cover.tau": (0.1, 0.2)}, "selectors"),
    ],
)
def test_ranges_of_what_is_not_searched_are_refused(ranges, part):
    """Red while they were taken: the search was the same with them and without."""
    one = space(ranges=ranges, **NARROW)
    assert names(one) == names(space(**NARROW))
    with pytest.raises(ConfigError) as error:
        one.check_ranges()
    said = str(error.value)
    assert said.startswith(f"space.ranges: received {next(iter(ranges))}, which would do nothing")
    assert "(cls_attention, coverage, top); search the part, too" in said
    assert "\n" not in said
    # The twins: the part is searched, or the range is one of a stage or of another part.
    found = space(ranges=ranges, **NARROW | {part: FULL[part]})
    found.check_ranges()
    assert set(ranges) < set(names(found))
    space(ranges={"retention.1": (0.3, 0.4), "top.scope": ("view",)}, **NARROW).check_ranges()


def test_what_takes_no_part_at_the_allowed_layers_is_not_searched():
    both = {"scorers": ("topv", "coverage"), "ranges": {"topv.sigma": (1.0, 30.0)}}
    facts = space().facts
    with pytest.raises(ConfigError, match=r"received topv\.sigma"):
        Space(SpaceSpec(parts="layer-0", **both), 0.25, facts).check_ranges()
    Space(SpaceSpec(**both), 0.25, facts).check_ranges()


def test_ranges_survive_toml(tmp_path):
    spec = StudySpec(
        space=SpaceSpec(ranges={"topv.sigma": (1, 30, "log"), "topv.solver": ("literal",)})
    )
    assert StudySpec.load(spec.save(tmp_path / "spec.toml")) == spec
