"""Selector, mass and exit are said wherever a config is shown."""

import pytest

from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.review.compare.diff import changes
from prunetune.review.dashboard.notes import schedule, weights
from prunetune.review.decoded import decoded
from prunetune.review.words import stage_words
from prunetune.scorers import SCORERS
from prunetune.selectors import SELECTORS
from prunetune.study.trials.trials import describe_config

COVER = SELECTORS.get("cover")()
SCORED = (SCORERS.get("coverage")(),)


def config(**fields):
    first = Stage(layer=0, retention=0.25, **{"scorers": SCORED, **fields})
    later = Stage(layer=8, retention=0.2, selector=first.selector, mass=first.mass)
    stages = (first, later, Stage(layer=12, retention=0.0))
    return PruningConfig(model=ModelRef(model_type="llava", num_layers=16), stages=stages)


def words_of(shown):
    return " ".join(map(str, stage_words(shown)))


def test_words_name_selector_mass_and_exit():
    said = words_of(config(selector=COVER, mass=0.5))
    assert "chosen by cover with scores, by one score" in said
    assert "facility location" in said
    assert "(mass 0.5)" in said
    assert "all image tokens leave" in said
    assert (
        "chosen by cover without scores" in stage_words(config(selector=COVER, scorers=()))[0].keeps
    )
    plain = words_of(config())
    assert "cover:" not in plain
    assert "(mass" not in plain


def test_tables_have_them():
    shown = config(selector=COVER, mass=1.0)
    found = decoded(shown)
    assert (found["selector"], found["cover: tau"], found["mass"]) == ("cover", 0.4, 1.0)
    assert (found["image tokens leave at"], found["number of stages"]) == (12, 2)
    assert "| cover | 1 |" in schedule(shown)
    assert "none" in weights(config(selector=COVER, scorers=()))
    assert describe_config(shown)["selector"] == "cover"
    # The twin: a config without them says so, and a trial of before has no more attributes.
    assert decoded(config())["selector"] == "top"
    plain = PruningConfig(
        model=shown.model, stages=(Stage(layer=0, retention=0.25, scorers=SCORED),)
    )
    assert "selector" not in describe_config(plain)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"selector": COVER}, "chooses by cover ("),
        ({"mass": 1.0}, "has mass 1 instead of 0"),
    ],
)
def test_a_difference_is_told(fields, words):
    told = [change.words for change in changes(config(), config(**fields))]
    assert any(words in text for text in told), told
    assert changes(config(**fields), config(**fields)) == []


def test_only_the_fields_that_differ_are_told():
    quota = SELECTORS.get("quota")()
    old, new = config(selector=COVER), config(selector=type(COVER)(tau=0.7))
    (first, second) = changes(old, new)
    assert first.words == f"first stage selector cover's tau {COVER.tau:g} -> 0.7"
    assert (first.field, first.before, first.after) == ("stages.0.selector.tau", COVER.tau, 0.7)
    assert second.field == "stages.1.selector.tau"
    # The twin: another selector is told with all that it has.
    assert "tau" in changes(config(selector=quota), new)[0].words
