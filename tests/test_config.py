"""The pruning config: round trips, messages, files of old releases, the schema in docs/."""

import copy
import json
import math
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunetune.config import ModelRef, Provenance, PruningConfig, Stage
from prunetune.errors import ConfigError
from prunetune.restorers import RESTORERS
from prunetune.scorers import SCORERS
from tools import export_schema

GOLDEN = sorted((Path(__file__).parent / "golden").glob("v*.json"))
SMALLEST = {
    "format": "prunetune.config",
    "version": 1,
    "model": {"model_type": "llava_next", "num_layers": 8},
    "stages": [{"layer": 2, "retention": 0.5, "scorers": [{"name": "coverage"}]}],
}


def scorers(draw, layer):
    names = st.lists(st.sampled_from(sorted(SCORERS)), min_size=1, unique=True)
    found = []
    for name in draw(names):
        fields = {"weight": draw(st.floats(-1, 1))}
        if name == "topv":
            fields |= {key: draw(st.floats(-2, 2)) for key in ("feature", "spatial", "central")}
            fields |= {"epsilon": draw(st.floats(0.01, 1)), "iterations": draw(st.integers(1, 9))}
            fields["solver"] = draw(st.sampled_from(["semi_relaxed", "end_on_v", "literal"]))
        elif name != "tile_prior":
            fields["per_crop"] = draw(st.booleans())
        found.append(SCORERS.get(name)(**fields))
    if not any(s.usable_at(layer) for s in found):
        found.append(SCORERS.get("coverage")())
    return tuple(found)


def provenances():
    number, text = st.none() | st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=9)
    return st.builds(
        Provenance,
        study=st.none() | text,
        trial=st.none() | st.integers(0, 2**63),
        gap=number,
        gap_ci=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
        held_out_gap=number,
        mean_retention=number,
        seed=st.none() | st.integers(),
        versions=st.dictionaries(text, text, max_size=3),
        created=st.none() | text,
    )


@st.composite
def configs(draw):
    depth = draw(st.integers(1, 64))
    layers = sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1, max_size=4)))
    shares = st.lists(st.floats(1e-6, 1), min_size=len(layers), max_size=len(layers))
    retentions = sorted(draw(shares), reverse=True)
    stages, before = [], 1.0
    for i, (layer, retention) in enumerate(zip(layers, retentions, strict=True)):
        restorer = RESTORERS.get("uniform_recovery")(every=draw(st.integers(2, 16)))
        fits = retention >= restorer.least_retention() * before
        stages.append(
            Stage(
                layer=layer,
                retention=retention,
                scorers=scorers(draw, layer) if i == 0 or draw(st.booleans()) else (),
                restorer=restorer if fits and draw(st.booleans()) else None,
            )
        )
        before = retention
    return PruningConfig(
        model=ModelRef(
            model_type=draw(st.sampled_from(["llava", "llava_next"])),
            num_layers=depth,
            name=draw(st.text(max_size=20)),
            revision=draw(st.none() | st.text(max_size=8)),
        ),
        separators=draw(st.sampled_from(["keep", "drop"])),
        positions="packed" if layers[0] == 0 and draw(st.booleans()) else "original",
        stages=tuple(stages),
        provenance=draw(provenances()),
    )


# -- round trips -----------------------------------------------------------------------


@given(configs())
def test_a_config_survives_saving_and_loading(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("round")
    saved = config.save(folder / "a.json")
    again = PruningConfig.load(saved)
    assert again == config
    assert [type(s) for x in again.stages for s in x.scorers] == [
        type(s) for x in config.stages for s in x.scorers
    ]
    assert again.save(folder / "b.json").read_bytes() == saved.read_bytes()
    assert again.digest() == config.digest()
    # The order of keys in a file is the writer's business.
    backwards = dict(reversed(json.loads(saved.read_text()).items()))
    assert PruningConfig.parse(backwards).to_json() == config.to_json()


@given(configs(), provenances())
def test_the_digest_is_of_what_a_config_does(config, provenance):
    assert config.model_copy(update={"provenance": provenance}).digest() == config.digest()


@given(configs(), configs())
def test_configs_that_differ_have_other_digests(one, other):
    bare = [c.model_copy(update={"provenance": Provenance()}) for c in (one, other)]
    assert (bare[0] == bare[1]) == (one.digest() == other.digest())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("separators", "drop"),
        ("stages.0.layer", 3),
        ("stages.0.retention", math.nextafter(0.5, 1)),
        ("stages.0.scorers.0.weight", -1.0),
        ("stages.0.restorer", {"name": "uniform_recovery", "every": 4}),
        ("model.num_layers", 9),
    ],
)
def test_every_part_that_matters_changes_the_digest(key, value):
    changed = PruningConfig.parse(with_value(SMALLEST, key, value))
    assert changed.digest() != PruningConfig.parse(SMALLEST).digest()


def test_a_config_cannot_be_changed():
    config = PruningConfig.parse(SMALLEST)
    with pytest.raises(ValidationError, match="frozen"):
        config.separators = "drop"
    with pytest.raises(ValidationError, match="frozen"):
        config.stages[0].scorers[0].weight = 0.5


# -- files -----------------------------------------------------------------------------


def test_there_are_golden_files():
    assert [path.stem[:3] for path in GOLDEN].count("v1_") >= 3
    assert [path.stem[:3] for path in GOLDEN].count("v2_") >= 3


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_files_of_old_releases_load_for_ever_and_save_back_to_the_same_bytes(path, tmp_path):
    config = PruningConfig.load(path)
    assert config.save(tmp_path / path.name).read_bytes() == path.read_bytes()


def test_what_a_golden_file_says_is_what_is_loaded():
    config = PruningConfig.load(Path(__file__).parent / "golden" / "v1_everything.json")
    assert [(s.layer, s.retention) for s in config.stages] == [(0, 0.7315), (3, 0.31), (9, 0.12)]
    topv = config.stages[1].scorers[0]
    assert (topv.name, topv.feature, topv.spatial, topv.epsilon) == ("topv", -0.5, 0.8, 0.125)
    assert (topv.solver, topv.iterations) == ("end_on_v", 5)
    assert config.stages[1].scorers[1].weight == -1.0
    assert config.stages[0].restorer.every == 4
    assert (config.separators, config.positions) == ("drop", "packed")
    assert config.provenance.gap_ci == (0.0433, 0.0532)
    assert config.digest() == "2facb1a10816818c7cb4efe13f3e33c216e766730c29b7469a4b4dc3ed5d7447"


def test_a_file_with_a_byte_order_mark_loads(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(SMALLEST).encode())
    assert PruningConfig.load(path) == PruningConfig.parse(SMALLEST)


def test_saving_makes_the_folder_and_leaves_nothing_else(tmp_path):
    path = PruningConfig.parse(SMALLEST).save(tmp_path / "new" / "a.prune.json")
    assert [p.name for p in path.parent.iterdir()] == ["a.prune.json"]


def test_a_save_that_fails_says_why_and_leaves_the_old_file(tmp_path):
    config = PruningConfig.parse(SMALLEST)
    with pytest.raises(ConfigError, match=r"cannot write config .*: "):
        config.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("old")
    with pytest.raises(ConfigError, match=r"cannot write config .*: "):
        config.save(tmp_path / "file" / "a.json")
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"{", "not JSON: Expecting property name"),
        (b'{"format": "prunetune.config", "format": "x"}', "the key 'format' appears twice"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"[" * 100_000, "not JSON: it is nested too deeply"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b"[]", "expected a JSON object, received list"),
        (b"null", "expected a JSON object, received NoneType"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert message in one_line(lambda: PruningConfig.load(path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    missing = one_line(lambda: PruningConfig.load(tmp_path / "no.json"))
    named = f"cannot read config {str(tmp_path / 'no.json')!r}: No such file or directory; give "
    assert missing.startswith(named)
    folder = one_line(lambda: PruningConfig.load(tmp_path))
    assert ": Is a directory; give a file that `prunetune export` " in folder
    assert "null byte" in one_line(lambda: PruningConfig.load("a\0b"))


@pytest.mark.parametrize("depth", [50, 400, 900])
def test_deep_nesting_inside_a_field_is_refused(tmp_path, depth):
    path = tmp_path / "deep.json"
    text = json.dumps(SMALLEST | {"separators": "X"}).replace('"X"', "[" * depth + "]" * depth)
    path.write_text(text)
    one_line(lambda: PruningConfig.load(path))


# -- values ----------------------------------------------------------------------------

TOPV = {"name": "topv"}
RECOVERY = {"name": "uniform_recovery"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("colour", 1, "colour: unknown key"),
        ("a\nb", 1, "a\\nb: unknown key"),
        ("stages.0.ratio", 0.5, "stages.0.ratio: unknown key"),
        ("stages.0.scorers.0.alpha", 1, "stages.0.scorers.0.alpha: unknown key"),
        ("format", "other", "format: received 'other', allowed 'prunetune.config'"),
        ("version", 3, "version: received 3, this release reads versions 1 and 2"),
        ("version", 1.0, "version: received 1.0, this release reads versions 1 and 2"),
        ("version", True, "version: received True, this release reads versions 1 and 2"),
        ("version", "1", "version: received '1', this release reads versions 1 and 2"),
        ("model.num_layers", 0, "num_layers: received 0, allowed a whole number from 1 to 4096"),
        ("model.num_layers", "8", "num_layers: received '8', allowed a whole number from 1 to"),
        ("model.num_layers", True, "num_layers: received True, allowed a whole number"),
        ("model.num_layers", 8.0, "num_layers: received 8.0, allowed a whole number"),
        ("model.model_type", 5, "model.model_type: received 5, input should be a valid string"),
        ("model", None, "model: received None, input should be a valid dictionary"),
        ("separators", "some", "separators: received 'some', input should be 'keep' or 'drop'"),
        ("positions", "old", "positions: received 'old', input should be 'original' or 'packed'"),
        ("positions", "packed", "positions: 'packed' renumbers after a layer-0 stage"),
        ("stages", [], "stages: received none, allowed 1 or more"),
        ("stages", "all", "stages: received 'all', input should be a valid tuple"),
        ("stages.0.layer", -1, "stages.0.layer: received -1, allowed a whole number of at least 0"),
        ("stages.0.layer", "2", "stages.0.layer: received '2', allowed a whole number"),
        ("stages.0.layer", True, "stages.0.layer: received True, allowed a whole number"),
        ("stages.0.layer", 8, "stages.0.layer: received 8, allowed 0 to 7 for a model of 8"),
        ("stages.0.retention", 0, "retention: received 0, allowed a number above 0 and at most 1"),
        ("stages.0.retention", 1.5, "retention: received 1.5, allowed a number above 0 and at mo"),
        ("stages.0.retention", "0.5", "retention: received '0.5', allowed a number above 0"),
        ("stages.0.retention", True, "retention: received True, allowed a number above 0"),
        ("stages.0.retention", math.nan, "retention: received nan, allowed a number above 0"),
        ("stages.0.retention", math.inf, "retention: received inf, allowed a number above 0"),
        ("stages.0.scorers", [], "stages.0.scorers: the first stage needs at least one scorer"),
        ("stages.0.scorers.0", 5, "stages.0.scorers.0: received 5"),
        ("stages.0.scorers.0", {}, "stages.0.scorers.0: a scorer needs a 'name', one of: cls_att"),
        ("stages.0.scorers.0.name", 5, "stages.0.scorers.0: a scorer needs a 'name', one of"),
        ("stages.0.scorers.0.name", "converage", "did you mean 'coverage'?"),
        ("stages.0.scorers.0.weight", 1.5, "weight: received 1.5, input should be less than or e"),
        ("stages.0.scorers.0.weight", "1", "weight: received '1', input should be a valid number"),
        ("stages.0.scorers.0.weight", True, "weight: received True, input should be a valid numb"),
        ("stages.0.scorers.0.weight", math.nan, "weight: received nan, input should be a finite"),
        ("stages.0.scorers.0.per_crop", 1, "per_crop: received 1, input should be a valid boolean"),
        ("stages.0.scorers.0", TOPV | {"epsilon": 0}, "epsilon: received 0, input should be grea"),
        ("stages.0.scorers.0", TOPV | {"solver": "x"}, "solver: received 'x', input should be 's"),
        ("stages.0.scorers.0", TOPV | {"iterations": 2.5}, "iterations: received 2.5, input shou"),
        ("stages.0.restorer", 5, "stages.0.restorer: received 5"),
        ("stages.0.restorer", {"name": "x"}, "stages.0.restorer: unknown restorer 'x'; known: c"),
        ("stages.0.restorer", RECOVERY | {"every": 1}, "every: received 1, input should be great"),
        ("provenance.trial", "7", "provenance.trial: received '7', input should be a valid integ"),
        ("provenance.seed", True, "provenance.seed: received True, input should be a valid integ"),
        ("provenance.gap", math.nan, "provenance.gap: received nan, input should be a finite"),
        ("provenance.gap_ci", [0.1], "provenance.gap_ci.1: missing"),
        ("provenance.author", "me", "provenance.author: unknown key"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(tmp_path, key, value, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(with_value(SMALLEST, key, value)))
    line = one_line(lambda: PruningConfig.load(path))
    assert line.startswith(f"{path}: ")
    assert message in line


STAGE = SMALLEST["stages"][0]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [STAGE, {"layer": 4, "retention": 0.6}],
            "stages.1.retention: received 0.6, allowed abo",
        ),
        ([STAGE, {"layer": 2, "retention": 0.4}], "stages.1.layer: received 2, allowed above 2"),
        ([STAGE, {"layer": 1, "retention": 0.4}], "stages.1.layer: received 1, allowed above 2"),
        ([STAGE, {"layer": 9, "retention": 0.4}], "stages.1.layer: received 9, allowed 0 to 7"),
        (
            [STAGE | {"scorers": [TOPV, TOPV]}],
            "stages.0.scorers: received ['topv', 'topv'], every scorer may appear once",
        ),
        (
            [STAGE | {"layer": 0, "scorers": [TOPV, {"name": "last_query"}]}],
            "stages.0.scorers: topv, last_query need states of a decoder layer",
        ),
        (
            [STAGE | {"retention": 0.2, "restorer": RECOVERY | {"every": 4}}],
            "stages.0.restorer: uniform_recovery leaves at least 0.25 of the tokens, but",
        ),
        (
            [STAGE, {"layer": 4, "retention": 0.1, "restorer": RECOVERY | {"every": 4}}],
            "stages.1.restorer: uniform_recovery leaves at least 0.125 of the tokens, but",
        ),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(stages, message):
    line = one_line(lambda: PruningConfig.parse(SMALLEST | {"stages": stages}))
    assert line.startswith(f"config: {message}")


@pytest.mark.parametrize("key", ["format", "version", "model", "stages", "stages.0.layer"])
def test_a_missing_key_is_named(key):
    data = copy.deepcopy(SMALLEST)
    *parents, last = key.split(".")
    inside = data
    for part in parents:
        inside = inside[int(part) if part.isdigit() else part]
    del inside[last]
    assert f"config: {key}: " in one_line(lambda: PruningConfig.parse(data))


def test_a_scorer_without_its_inputs_may_stand_beside_one_that_has_them():
    both = [TOPV, {"name": "coverage"}]
    PruningConfig.parse(with_value(SMALLEST, "stages.0", STAGE | {"layer": 0, "scorers": both}))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=9))
def test_no_value_anywhere_is_worth_more_than_one_line(value):
    for key in ("model", "stages", "stages.0", "stages.0.scorers", "provenance.versions"):
        line = refusal(with_value(SMALLEST, key, value))
        assert line is None or line.isprintable()


# -- the schema in docs/ ---------------------------------------------------------------


def test_the_schema_in_docs_is_current():
    assert export_schema.SCHEMA.read_text("utf-8") == export_schema.text(), "run: make schema"


def test_a_changed_schema_would_be_noticed(monkeypatch):
    field = Stage.model_fields["retention"]
    monkeypatch.setattr(field, "description", "changed")
    PruningConfig.model_rebuild(force=True)
    Stage.model_rebuild(force=True)
    PruningConfig.model_rebuild(force=True)
    try:
        assert export_schema.SCHEMA.read_text("utf-8") != export_schema.text()
    finally:
        monkeypatch.undo()
        Stage.model_rebuild(force=True)
        PruningConfig.model_rebuild(force=True)
    assert export_schema.SCHEMA.read_text("utf-8") == export_schema.text()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_schema_accepts_golden_files(path):
    jsonschema.validate(json.loads(path.read_text()), export_schema.schema())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("colour", 1),
        ("version", 3),
        ("stages.0.retention", 1.5),
        ("stages.0.scorers.0", {"name": "nobody"}),
        ("stages.0.scorers.0", {"name": "coverage", "feature": 1.0}),
        ("stages.0.restorer", {"every": 4}),
    ],
)
def test_the_schema_refuses_what_load_refuses(key, value):
    data = with_value(SMALLEST, key, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, export_schema.schema())
    with pytest.raises(ConfigError):
        PruningConfig.parse(data)


def test_the_page_on_the_config_file_has_every_field():
    page = (export_schema.SCHEMA.parent / "config.md").read_text("utf-8")
    fields = {
        name for kind in (PruningConfig, ModelRef, Stage, Provenance) for name in kind.model_fields
    }
    assert {name for name in fields if f"| `{name}` |" not in page} == set()


# -- helpers ---------------------------------------------------------------------------


def with_value(data, key, value):
    data = copy.deepcopy(data)
    *parents, last = key.split(".")
    inside = data
    for part in parents:
        inside = inside[int(part)] if part.isdigit() else inside.setdefault(part, {})
    inside[int(last) if last.isdigit() else last] = value
    return data


def refusal(data):
    try:
        PruningConfig.parse(data)
    except ConfigError as error:
        return str(error)
    return None


def one_line(call):
    with pytest.raises(ConfigError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    return line
