"""Environments with another transformers, and what is said of a version beyond the range."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import beyond  # noqa: E402
import overlay  # noqa: E402

JUNIT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_families" name="test_one[llava]"/>
<testcase classname="tests.test_families" name="test_two[llava]">
  <failure message="AssertionError: 3 != 4&#10;more"/></testcase>
<testcase classname="tests.test_runtime" name="test_three"><error message="no module"/></testcase>
<testcase classname="tests.test_runtime" name="test_four"><skipped message="too old"/></testcase>
</testsuite></testsuites>"""


def test_the_range_is_declared_alike_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = Requirement(overlay.declared())
    others = [Requirement(d) for extra in project["optional-dependencies"].values() for d in extra]
    for other in (r for r in others if r.name == "transformers"):
        assert other.specifier == declared.specifier
    # Bounded from above to a minor release: a newer one is not known to be right.
    assert [s.version.count(".") for s in declared.specifier if s.operator == "<"] == [1]


def test_the_locked_version_and_the_floor_are_in_the_range():
    specifier = Requirement(overlay.declared()).specifier
    locked = (ROOT / "tools" / "constraints.txt").read_text("utf-8").splitlines()
    oldest = next(
        line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "OLDEST ?=" in line
    )
    for line in (*locked, oldest):
        if "transformers==" in line:
            assert specifier.contains(line.partition("==")[2])


def test_another_range_is_read_as_it_stands(tmp_path):
    other = tmp_path / "pyproject.toml"
    other.write_text('[project]\ndependencies = ["torch", "transformers>=7,<7.2"]\n')
    assert overlay.declared(other) == "transformers>=7,<7.2"


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in a virtual environment")
def test_an_overlay_shares_what_it_does_not_hold(tmp_path):
    python = overlay.create(tmp_path / "env")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments):
        done = subprocess.run(
            [python, *arguments], capture_output=True, text=True, check=True, env=environment
        )
        return done.stdout.strip()

    code = "import sys, pydantic, colorlog; print(pydantic.__file__, colorlog.__file__)"
    shared, before = run("-c", code).split()
    [own] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (own / "colorlog.py").write_text("")
    again, after = run("-c", code).split()
    assert shared == again
    assert not shared.startswith(str(tmp_path))
    assert not before.startswith(str(tmp_path))
    assert after == str(own / "colorlog.py")
    # To pip it is all there: no network is asked.
    words = ("-m", "pip", "install", "--no-index", "--dry-run", "transformers")
    assert "already satisfied: transformers" in run(*words)


def test_what_broke_is_told(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text(JUNIT)
    lines = beyond.broken(path)
    assert lines == [
        "tests.test_families::test_two[llava]: AssertionError: 3 != 4",
        "tests.test_runtime::test_three: no module",
    ]
    told = beyond.verdict("9.9.0", "transformers>=5,<6", lines)
    assert told.startswith("transformers 9.9.0 breaks 2 tests:\n")
    assert "3 != 4" in told
    assert "and 5 more" in beyond.verdict("9.9.0", "transformers>=5,<6", ["x"] * 25)
    assert beyond.broken(tmp_path / "none.xml") == ["pytest wrote no results"]


def test_what_passes_raises_the_bound():
    assert "raise the bound (<6,>=5)" in beyond.verdict("9.9.0", "transformers>=5,<6", [])
    assert "nothing to do" in beyond.verdict("5.1", "transformers>=5,<6", None)


@pytest.mark.parametrize(("status", "results"), [(0, True), (1, True), (3, False)])
def test_tests_run_only_beyond_the_range(monkeypatch, capsys, status, results):
    ran = []

    def run(words, check):
        ran.append(words)
        if results:
            path = next(word for word in words if word.startswith("--junitxml=")).partition("=")[2]
            Path(path).write_text(JUNIT if status else "<testsuites/>")
        return subprocess.CompletedProcess(words, status)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(beyond, "version", lambda name: "5.18.0")
    assert beyond.main(["tests"]) == 0
    assert ran == []
    monkeypatch.setattr(beyond, "version", lambda name: "99.0.0")
    assert beyond.main(["tests"]) == bool(status)
    assert ran[0][-1] == "tests"
    assert ("raise the bound" in capsys.readouterr().out) == (status == 0)
