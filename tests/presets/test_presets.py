import pytest
import torch
from selector_naive import distinct, image
from test_selectors_plain import is_greedy

from prunetune import presets
from prunetune.budget import mean_retention, rebudget
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.presets import load_preset, preset_names, read_preset


def preset(name, num_layers=32, keep=None):
    return load_preset(name, model_type="llava_next", num_layers=num_layers, keep=keep)


def test_the_published_methods_and_the_controls_are_there():
    assert set(preset_names()) == {
        *("topv", "fastervlm", "fastv", "vflowopt", "uniform", "random", "pool"),
        *("divprune", "cdpruner", "visionzip", "vispruner", "scope", "mmtok"),
    }


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_config_with_its_source_and_meets_budgets(name):
    data = read_preset(name)
    assert data["name"] == name
    assert len(data["source"]) > 20
    published, note = preset(name)
    assert note == ""
    assert PruningConfig.parse(published.model_dump(mode="json")) == published
    for num_layers, keep in ((16, 0.1), (16, 0.25), (28, 0.5), (32, 1.0), (32, 0.05)):
        config, _ = preset(name, num_layers, keep)
        assert abs(mean_retention(config.stages, num_layers) - keep) < 1e-9
        assert {s.name for s in config.stages[0].scorers} == {
            s.name for s in published.stages[0].scorers
        }


def test_the_settings_are_the_published_ones():
    topv = preset("topv")[0].stages[0]
    scorer = topv.scorers[0]
    assert (topv.layer, topv.retention, topv.restorer.every) == (2, 0.625, 4)
    assert (scorer.feature, scorer.spatial, scorer.central, scorer.per_crop) == (1, 1, 0.01, True)
    fastervlm = preset("fastervlm")[0]
    assert (fastervlm.stages[0].layer, fastervlm.separators, fastervlm.positions) == (
        0,
        "drop",
        "packed",
    )
    assert fastervlm.stages[0].scorers[0].per_crop
    fastv = preset("fastv")[0].stages[0]
    assert (fastv.layer, fastv.retention, fastv.scorers[0].name) == (2, 0.5, "last_query")


def test_what_had_to_change_is_said():
    assert preset("fastv", 16, 0.1)[1] == "moved from layer 2 to 1"
    assert preset("topv", 16, 0.1)[1] == "moved from layer 2 to 1; uniform_recovery every 4 -> 49"
    assert preset("uniform", 16, 0.1)[1] == ""
    with pytest.raises(ConfigError, match="last_query"):
        preset("fastv", 16, 0.05)


def test_an_unknown_preset_suggests_a_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'fastv'"):
        preset("fastvv")


def test_a_share_of_the_depth_and_a_model_type_of_its_own(monkeypatch):
    data = read_preset("uniform")
    stage = {"depth": 0.25, "retention": 0.5, "scorers": [{"name": "coverage"}]}
    data["stages"] = [stage]
    data["by_model_type"] = {"qwen": {"stages": [{**stage, "depth": 0.5}]}}
    monkeypatch.setattr(presets, "read_preset", lambda name: dict(data))
    for model_type, num_layers, layer in (("llava", 28, 7), ("llava", 16, 4), ("qwen", 16, 8)):
        config, _ = load_preset("uniform", model_type=model_type, num_layers=num_layers)
        assert config.stages[0].layer == layer


def test_internvl_has_topvs_settings_of_its_own():
    stage = load_preset("topv", model_type="internvl", num_layers=24)[0].stages[0]
    assert (stage.layer, stage.restorer.every, stage.scorers[0].central) == (2, 3, 0.1)
    # Three quarters dropped, a third of them recovered.
    assert stage.retention == pytest.approx(0.25 + 0.75 / 3)


def test_a_preset_is_of_the_first_version_that_can_say_it():
    assert {name: preset(name)[0].version for name in ("uniform", "topv", "vflowopt")} == {
        "uniform": 1,
        "topv": 1,
        "vflowopt": 2,
    }
    for name in ("divprune", "pool", "scope"):
        config = preset(name)[0]
        assert config.version == 2
        with pytest.raises(ConfigError, match="version: received 1"):
            PruningConfig.parse(config.model_dump(mode="json") | {"version": 1})
    moved, _ = preset("vflowopt", 16, 0.2)
    assert moved.version == 2
    [scorer] = moved.stages[0].scorers
    assert (scorer.unit, scorer.interpolated) == ("mean", True)


def test_a_file_of_version_1_cannot_say_what_is_newer():
    data = preset("vflowopt")[0].model_dump(mode="json")
    with pytest.raises(ConfigError, match="version: received 1"):
        PruningConfig.parse(data | {"version": 1})
    for name in ("unit", "interpolated"):
        del data["stages"][0]["scorers"][0][name]
    old = PruningConfig.parse(data | {"version": 1})
    assert old.stages[0].scorers[0].unit == "uniform"
    assert old.digest() != preset("vflowopt")[0].digest()


def selector(name):
    return preset(name)[0].stages[0].selector


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["divprune", "cdpruner", "scope", "mmtok"])
def test_a_set_is_its_papers(name, seed):
    """Each one is taken greedily by the paper's formula, written a second time in float64."""
    chosen = selector(name)
    is_greedy(chosen.name, chosen.model_dump(exclude={"name", "scope"}), seed)


def test_the_sets_settings_are_the_papers():
    assert (selector("divprune").first, selector("divprune").centred) == ("isolated", False)
    scope, mmtok = selector("scope"), selector("mmtok")
    assert (scope.kernel, scope.beta, scope.spatial, scope.text) == ("cosine", 1.0, 0.0, 0.0)
    assert (mmtok.kernel, mmtok.tau, mmtok.text, mmtok.text_tau) == ("softmax", 0.2, 2.0, 0.02)
    assert mmtok.spatial == mmtok.beta == 0.0
    assert [preset(name)[0].prompt_dependent for name in ("mmtok", "scope")] == [True, False]


def test_cdpruner_is_the_papers_with_the_question():
    config = preset("cdpruner")[0]
    dpp = config.stages[0].selector
    assert (dpp.theta, dpp.relevance, dpp.scope, dpp.centred) == (0.5, "exp", "view", False)
    assert config.prompt_dependent


def test_visionzip_is_the_highest_and_every_mth_of_the_rest_of_each_view():
    ctx = image(8, 16, seed=3)
    kept = set(selector("visionzip").keep(ctx, 64).tolist())
    ranked = sorted(range(128), key=lambda i: -float(ctx.scores[i]))
    rest = sorted(ranked[54:])
    assert kept == {*ranked[:54], *(rest[(len(rest) // 10) * i] for i in range(10))}


def test_vispruner_is_half_the_highest_and_half_without_duplicates():
    ctx = image(8, 16, seed=3)
    chosen = selector("vispruner")
    kept = set(chosen.keep(ctx, 33).tolist())
    ranked = sorted(range(128), key=lambda i: -float(ctx.scores[i]))
    rest = torch.tensor(sorted(ranked[16:]))
    own = distinct(ctx.select(rest), chosen.parts[1].selector, 17)
    assert kept == {*ranked[:16], *rest[own].tolist()}


def test_visionzip_merges_what_it_drops():
    restorer = preset("visionzip")[0].stages[0].restorer
    assert (restorer.name, restorer.share) == ("similarity_merge", 1.0)


def test_a_set_at_a_late_layer_needs_no_score_to_be_moved():
    data = preset("divprune")[0].model_dump(mode="json")
    data["stages"][0]["layer"] = 6
    moved, note = rebudget(PruningConfig.parse(data), 0.1, 32)
    assert note == "moved from layer 6 to 2"
    assert moved.stages[0].selector == selector("divprune")
    data["stages"][0] |= {"selector": None, "scorers": [{"name": "last_query"}]}
    with pytest.raises(ConfigError, match="last_query cannot meet"):
        rebudget(PruningConfig.parse(data), 0.02, 32)


def test_pool_keeps_one_a_cell_and_averages():
    stage = preset("pool")[0].stages[0]
    assert (stage.selector.name, stage.restorer.name, stage.scorers) == ("cells", "cell_mean", ())
