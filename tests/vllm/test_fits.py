"""Which configs vLLM can run, and the search that only finds such ones; needs no vLLM."""

from random import Random
from types import SimpleNamespace

import pytest
from engines import config_for
from spaces import space

from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.vllm.engine import check_packing
from prunetune.vllm.fits import ARCHITECTURES, applicable, by_view, narrowed, problem

REFUSED = {
    "layer 2": {"layer": 2},
    "mass": {"mass": 1.0},
    "text_relevance": {"scorers": [{"name": "text_relevance"}]},
    "cover": {"selector": {"name": "cover", "text": 1.0}},
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_vllm_cannot_run_has_a_reason(word):
    reason = problem(config_for("llava_next", 16, **{"restorer": None, **REFUSED[word]}))
    assert reason is not None
    assert word in reason
    assert "\n" not in reason


def test_smaller_pictures_are_refused_by_name():
    config = config_for("llava_next", 16)
    assert problem(config) is None
    small = type(config).parse({**config.model_dump(mode="json"), "pixels": {"share": 0.5}})
    assert "makes pictures smaller" in str(problem(small))


def test_the_rest_it_can_run():
    for name, arch in ARCHITECTURES.items():
        selector = {"selector": {"name": "top", "scope": "view"}} if arch.in_views else {}
        assert problem(config_for(name, 16, **selector)) is None
    assert "gemma3" in str(problem(config_for("gemma3", 16)))
    can = applicable()
    assert {"topv", "last_query", "text_relevance", "key_norm"} & {*can["scorers"]} == set()
    assert {"cls_attention", "context_entropy", "coverage"} <= {*can["scorers"]}


@pytest.mark.parametrize("selector", [None, {"name": "maxmin"}, {"name": "top"}])
def test_where_views_stand_apart_each_needs_its_share(selector):
    config = config_for("idefics3", 16, selector=selector)
    reason = str(problem(config))
    assert '"scope": "view"' in reason
    assert (selector or {"name": "top"})["name"] in reason
    assert problem(by_view(config)) is None
    # Elsewhere it is as it was.
    other = config_for("llava_next", 16, selector=selector)
    assert by_view(other) == other


def test_a_restorer_that_chooses_has_no_say_where_views_stand_apart():
    named = {"selector": None, "restorer": {"name": "uniform_recovery"}, "retention": 0.4}
    assert "uniform_recovery" in str(problem(config_for("idefics3", 16, **named)))
    assert problem(config_for("llava_next", 16, **named)) is None
    asked = {"restorers": ["none", "uniform_recovery"]}
    with pytest.raises(ConfigError, match="--restorers: received uniform_recovery"):
        narrowed("idefics3", asked)
    assert narrowed("idefics3", {"restorers": ["none", "similarity_merge"]})
    assert narrowed("llava_next", asked)


def test_llava_onevision_as_vllm_counts_it():
    usual, other = (SimpleNamespace(vision_aspect_ratio=f"anyres_max_{n}") for n in (9, 2))
    check_packing("llava_onevision", usual)
    check_packing("llava_next", other)
    with pytest.raises(UnsupportedModelError, match="anyres_max_2"):
        check_packing("llava_onevision", other)


@pytest.mark.parametrize("model_type", ["llava_next", "idefics3"])
def test_a_narrowed_search_finds_nothing_else(model_type):
    """Whatever is suggested; and without narrowing, some of it cannot run."""
    for given, allowed in ((narrowed(model_type, {}), True), ({}, False)):
        made = space(keep=0.1, model_type=model_type, **given)
        random = Random(0)
        points = [{d.name: random.random() for d in made.dimensions()} for _ in range(40)]
        assert all(problem(made.decode(point)) is None for point in points) is allowed


@pytest.mark.parametrize("model_type", ["llava_next", "idefics3"])
@pytest.mark.parametrize("selectors", [None, ("top",), ("cover",), ("top", "dpp", "spread")])
def test_a_narrowed_search_has_ranges_of_what_it_searches_only(model_type, selectors):
    asked = {} if selectors is None else {"selectors": selectors}
    made = narrowed(model_type, asked)
    space(keep=0.1, model_type=model_type, **made).check_ranges()
    scoped = {name for name in made["ranges"] if name.endswith(".scope")}
    searched = selectors or ("top", "cover", "dpp")
    assert scoped == ({f"{n}.scope" for n in searched} if model_type == "idefics3" else set())
    # The twin: what is asked for besides is not taken without a word.
    made = narrowed(model_type, asked | {"ranges": {"mmr.relevance": (0.1, 0.2)}})
    with pytest.raises(ConfigError, match=r"mmr\.relevance"):
        space(keep=0.1, model_type=model_type, **made).check_ranges()


def test_a_selection_over_the_whole_picture_is_refused_where_views_stand_apart():
    asked = {"ranges": {"cover.scope": ["image"]}}
    with pytest.raises(ConfigError, match=r"cover\.scope"):
        narrowed("idefics3", asked)
    assert narrowed("llava_next", asked)["ranges"]["cover.scope"] == ["image"]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"scorers": ["topv"]}, "topv"),
        ({"layers": (0, 3)}, "--layers"),
        ({"mass": [0.0, 1.0]}, "--mass"),
        ({"max_stages": 2}, "--stages"),
        ({"pixels": True}, "--pixels"),
    ],
)
def test_a_search_for_vllm_refuses_what_it_cannot_apply(asked, word):
    with pytest.raises(ConfigError, match=word):
        narrowed("llava_next", asked)
    with pytest.raises(ConfigError, match="gemma3"):
        narrowed("gemma3", {})
