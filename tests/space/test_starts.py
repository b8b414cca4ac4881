"""Where a search starts: points that lie in the space, whatever the space is."""

import pytest

from prunetune.budget import ModelFacts, mean_retention
from prunetune.scorers import SCORERS
from prunetune.space.space import Space
from prunetune.space.starts import first_starts, starts
from prunetune.spec import SpaceSpec


def space(keep=0.25, **spec):
    facts = ModelFacts("llava_next", 16, 128, 352, 4, 4, 32, 330.0, 10.0, 0.05, tuple(SCORERS))
    return Space(SpaceSpec(**spec), keep, facts)


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.1, 0.05])
def test_every_start_is_a_config_on_budget(keep):
    made = space(keep)
    found = starts(made)
    assert len(found) >= (4 if keep >= 0.1 else 2)
    names = {dimension.name for dimension in made.dimensions()}
    for units in found.values():
        assert set(units) == names
        assert mean_retention(made.decode(units).stages, 16) == pytest.approx(keep, abs=1e-9)


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("keep", [0.75, 0.25])
def test_shallow_models_have_the_starts_that_they_have_layers_for(depth, keep):
    facts = ModelFacts("llava_next", depth, 128, 352, 4, 4, 32, 330.0, 10.0, 0.05, tuple(SCORERS))
    made = Space(SpaceSpec(), keep, facts)
    for units in {**first_starts(made), **starts(made)}.values():
        stages = made.decode(units).stages
        assert [s.layer for s in stages] == sorted({s.layer for s in stages})
        assert mean_retention(stages, depth) == pytest.approx(keep, abs=1e-9)
    assert first_starts(made)


def test_starts_blend_an_even_spread_with_saliency():
    for units in starts(space()).values():
        first = space().decode(units).stages[0]
        weights = {scorer.name: scorer.weight for scorer in first.scorers}
        assert weights["coverage"] == 1.0
        assert 0 < weights["cls_attention"] < 0.5
        assert set(weights) <= {"coverage", "cls_attention", "last_query"}


@pytest.mark.parametrize(
    "narrowed",
    [
        {"scorers": ("topv",)},
        {"scorers": ("coverage", "topv"), "max_stages": 1},
        {"layers": (0, 0), "max_stages": 1},
        {"separators": ("keep",), "restorers": ("none",)},
        {"stage_layers": (0, 8), "fixed_weights": True},
    ],
)
def test_starts_of_a_narrowed_space_lie_in_it(narrowed):
    made = space(**narrowed)
    names = {dimension.name for dimension in made.dimensions()}
    for units in starts(made).values():
        assert set(units) <= names | set()
        assert made.decode(units).stages
    # The twin: without the scorers that are blended there is nothing to start from.
    assert bool(starts(made)) == ("coverage" in narrowed.get("scorers", ("coverage",))) or (
        "fixed_weights" in narrowed
    )
