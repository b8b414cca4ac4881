"""The support matrix is what the tests' results say, and the pages are what the tool writes."""

import json
import re
import sys
from pathlib import Path

import pytest

from prunetune.families import FAMILIES
from prunetune.models import aliases

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import support_matrix as tool  # noqa: E402

XML = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_families" name="test_equals_masking[sdpa-2+4-llava]"/>
<testcase classname="tests.test_families" name="test_equals_masking[eager-2+4-llava]"/>
<testcase classname="tests.test_families" name="test_beams[2+4-llava]">{beams}</testcase>
<testcase classname="tests.test_families" name="test_half_precision[llava_next]">
  <skipped message="too old"/></testcase>
<testcase classname="tests.test_families" name="test_equals_masking[sdpa-0-video_llava]"/>
<testcase classname="tests.test_families" name="test_something_else"/>
</testsuite></testsuites>"""


@pytest.fixture
def results(tmp_path):
    def made(beams=""):
        path = tmp_path / "x.xml"
        path.write_text(XML.format(beams=beams))
        return tool.read(path, list(FAMILIES))

    return made


def test_cases_are_counted_by_family_and_part(results):
    found = results()
    assert found["llava"]["masked reference"] == {"passed": 2, "failed": 0, "skipped": 0}
    assert found["llava"]["beams"]["passed"] == 1
    assert tool.total(found["llava_next"]) == {"passed": 0, "failed": 0, "skipped": 1}
    assert found["video_llava"].keys() == {"masked reference"}
    assert set(found) == {"llava", "llava_next", "video_llava"}


@pytest.mark.parametrize(
    ("beams", "shown"), [("", "✓ 1"), ("<failure/>", "✗ 1"), ("<error/>", "✗ 1")]
)
def test_a_failure_shows(results, beams, shown):
    record = tool.recorded({"5.23.0": results(beams)})
    rows = {row.split("|")[1].strip(): row for row in tool.table(record, ["llava", "gemma3"])[4:]}
    assert shown in rows["`llava`"]
    assert ("FAILED" in rows["`llava`"]) == bool(beams)
    assert "✓" not in rows["`gemma3`"]
    assert "none" in rows["`gemma3`"]


@pytest.mark.parametrize(
    ("versions", "head"),
    [
        (("5.3.0",), "transformers 5.3.0 ("),
        (("5.23.0", "5.9.0"), "transformers 5.9.0 and 5.23.0 ("),
        (("5.23.0", "5.9.0", "5.24.0"), "transformers 5.9.0, 5.23.0 and 5.24.0 (`✓ a+b+c`"),
    ],
)
def test_as_many_versions_as_differ(results, versions, head):
    record = tool.recorded(dict.fromkeys(versions, results()))
    lines = tool.table(record, ["llava"])
    assert head in lines[0]
    assert "+".join("2" * len(versions)) in lines[-1]


def test_a_page_keeps_what_stands_around(tmp_path):
    page = tmp_path / "p.md"
    page.write_text(f"before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n")
    assert tool.rewrite(page, ["new"])
    assert page.read_text() == f"before\n{tool.BEGIN}\nnew\n{tool.END}\nafter\n"
    page.write_text("nothing")
    assert not tool.rewrite(page, ["new"])
    assert page.read_text() == "nothing"


def test_the_pages_say_what_was_recorded():
    store = ROOT / "prunetune" / aliases.RECORD
    if not store.is_file():
        pytest.skip("no results recorded: make support")
    expected = "\n".join(tool.table(json.loads(store.read_text("utf-8")), list(FAMILIES)))
    text = (ROOT / "docs" / "support.md").read_text("utf-8")
    assert text.partition(tool.BEGIN)[2].partition(tool.END)[0].strip() == expected


def test_readme_names_every_family():
    models = (ROOT / "README.md").read_text("utf-8").partition("## Which models")[2]
    named = re.findall(r"`(\w+)`", models.partition(":")[0])
    assert sorted(named) == sorted(FAMILIES)


def test_proof_follows_the_record(monkeypatch):
    [alias] = [a for a in aliases.ALIASES if a.alias == "llava-1.5"]
    results = {"5.23.0": {"passed": 7, "failed": 2, "skipped": 0}}
    monkeypatch.setattr(aliases, "record", lambda: {"families": {"llava": results}})
    assert "transformers 5.23.0: 7 passed, 2 FAILED; weights not run" in alias.proof
    monkeypatch.setattr(aliases, "record", dict)
    assert alias.proof == "no results recorded"
