"""Three users who want a decision: with labels, without, and with too little data.

Each story is what README shows, run through the command line on the embedded model and on parts of
its data. Those that measure a whole table are run by `make test-scripts`.
"""

import copy
import json
import shutil

import jsonschema
import pytest
from cli_runner import call, refused

from prunetune.calibration.sources import tiny_folder
from prunetune.config import PruningConfig
from tools import search_schema

FEW = ("--trials", 4, "--threads", 1, "--no-cache", "--preset", "uniform", "--json")


def pictures(folder, split, count, labelled=True):
    """Copy the first pictures of a split of the shipped set, with or without their questions."""
    folder.mkdir(parents=True)
    source = tiny_folder() / split
    rows = [json.loads(line) for line in (source / "metadata.jsonl").open()]
    names = list(dict.fromkeys(row["file_name"] for row in rows))[:count]
    for name in names:
        shutil.copy(source / name, folder / name)
    if labelled:
        kept = [json.dumps(row) + "\n" for row in rows if row["file_name"] in names]
        (folder / "metadata.jsonl").write_text("".join(kept))
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Story (a): "may lose at most 2 points, make it as cheap as possible; what does it save?"."""
    folder = tmp_path_factory.mktemp("labelled")
    data = pictures(folder / "data", "calibration", 2)
    held_out = pictures(folder / "held-out", "held_out", 40)
    words = [
        "search",
        "--model",
        "tiny",
        "--max-drop",
        2,
        "--keep",
        "0.6:0.9",
        "--no-report",
    ]
    words += ["--data", data, "--held-out", held_out, "--out", folder / "run"]
    ran = call(*words, "--price", "2.5/h", *FEW, "--preset", "none")
    assert ran.status == 0, ran.err
    return folder / "run", ran


@pytest.mark.script
def test_labelled_data_ends_with_a_config_to_ship(labelled, tmp_path):
    out, ran = labelled
    found = ran.json
    jsonschema.validate(found, search_schema.schema())
    decision, judged = found["decision"], found["judged"]
    assert decision["kept"]
    assert decision["loses"]["bound"] <= 0.02
    assert decision["room"] == pytest.approx(0.02 - decision["loses"]["bound"])
    lost = judged["unpruned"]["accuracy"]
    assert lost["mean"] == pytest.approx(decision["loses"]["mean"])
    assert lost["of"] == found["unpruned"]["accuracy"] > 0.8
    assert judged["promise_kept"]
    # Export takes it by default, with all that is known of it.
    made = call("export", out, "-o", tmp_path / "tiny.json", "--json")
    assert made.status == 0, made.err
    known = PruningConfig.load(tmp_path / "tiny.json").provenance
    assert known.trial == decision["trial"]
    assert json.loads(known.judged.model_dump_json()) == judged
    saving = known.saving
    assert saving.million_requests.unpruned == pytest.approx(
        saving.total_ms.unpruned / 3.6 * 2.5, rel=1e-6
    )
    assert saving.kv_mib.pruned < saving.kv_mib.unpruned
    assert found["saving"] == {**json.loads(saving.model_dump_json()), "told": saving.told}
    shown = call("status", out, "--json").json
    assert (shown["judged"], shown["tick"]) == (judged, found["tick"])


@pytest.mark.script
def test_a_folder_of_pictures_is_enough(tmp_path):
    """Story (b): no questions, no answers."""
    data = pictures(tmp_path / "data", "calibration", 3, labelled=False)
    held_out = pictures(tmp_path / "held-out", "held_out", 16, labelled=False)
    ran = call(
        "search", "--model", "tiny", "--max-gap", 0.5, "--data", data, "--held-out", held_out,
        "--out", tmp_path / "run", *FEW,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    found = ran.json
    jsonschema.validate(found, search_schema.schema())
    assert found["decision"]["kept"]
    judged = found["judged"]
    assert judged["unpruned"]["accuracy"] is None
    assert judged["unpruned"]["gap"]["mean"] == pytest.approx(found["decision"]["loses"]["mean"])
    assert "points of accuracy" not in found["verdict"]
    assert f"Ship trial {found['decision']['trial']}" in found["verdict"]
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "The promise" in page


def test_too_few_samples_are_told_before_anything_runs(tmp_path):
    """Story (c): twenty questions cannot show a loss of two points."""
    data = pictures(tmp_path / "data", "calibration", 2)
    held_out = pictures(tmp_path / "held-out", "held_out", 5)
    refused(
        "search", "--model", "tiny", "--max-drop", 2, "--data", data, "--held-out", held_out,
        "--out", tmp_path / "run", *FEW[:-1],
        has=("20 held-out samples on 5 pictures cannot show", "give ", " or more, or promise less"),
    )  # fmt: skip


@pytest.mark.script
def test_one_budget_and_a_front_are_valid_too(tmp_path):
    data = pictures(tmp_path / "data", "calibration", 2)
    held_out = pictures(tmp_path / "held-out", "held_out", 5)
    for keep in (("--keep", 0.25), ("--objective", "pareto", "--keep", "0.1:0.5")):
        out = tmp_path / str(keep[0])
        ran = call(
            "search", "--model", "tiny", *keep, "--data", data, "--held-out", held_out,
            "--out", out, "--no-report", *FEW,
        )  # fmt: skip
        assert ran.status == 0, ran.err
        jsonschema.validate(ran.json, search_schema.schema())


@pytest.mark.script
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("judged", "outcome"), "great"),
        (("decision", "kept"), "yes"),
        (("decision", "loses", "bound"), None),
        (("verdict",), None),
        (("more",), 1),
    ],
)
def test_the_schema_refuses_what_search_does_not_print(labelled, path, value):
    data = copy.deepcopy(labelled[1].json)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, search_schema.schema())


def test_the_written_schema_is_the_present_one():
    assert search_schema.SCHEMA.read_text("utf-8") == search_schema.text(), "run: make schema"
