"""Rows of measurements say what they are of, and are not taken for another's."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from ledger import Ledger, read, whose

ONE, OTHER = {"model": "tiny", "weights": "a"}, {"model": "tiny", "weights": "b"}


def test_rows_are_read_back_by_whose_they_are(tmp_path):
    file = tmp_path / "rows.jsonl"
    ledger = Ledger(file, ONE)
    ledger.add({"keep": 0.1})
    assert Ledger(file, ONE).rows() == Ledger(file).rows() == [{"keep": 0.1, "about": ONE}]
    assert Ledger(file).model == "tiny"


def test_rows_of_other_weights_under_the_same_name_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    Ledger(file, ONE).add({"keep": 0.1})
    with pytest.raises(SystemExit, match=r'"weights": "a".*"weights": "b".*another --out'):
        Ledger(file, OTHER)
    file.write_text(file.read_text() + json.dumps({"keep": 0.1, "about": OTHER}) + "\n")
    with pytest.raises(SystemExit):
        Ledger(file)


def test_rows_without_a_name_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"keep": 0.1}\n')
    with pytest.raises(SystemExit, match="rows of null"):
        Ledger(file, ONE)


def test_a_file_may_hold_the_rows_of_several_witnesses(tmp_path):
    file = tmp_path / "rows.jsonl"
    for name, about in (("one", ONE), ("two", OTHER)):
        Ledger(file, about, {"witness": name}).add({"keep": 0.1})
    assert [row["witness"] for row in read(file)] == ["one", "two"]
    assert len(Ledger(file, OTHER, {"witness": "two"}).rows()) == 1
    with pytest.raises(SystemExit):
        Ledger(file, OTHER, {"witness": "one"})


def test_editions_of_the_embedded_model_and_parts_of_its_sets_are_told_apart():
    today, part, former = whose("tiny"), whose("tiny", samples=8), whose("tiny-1")
    assert today == whose("tiny")
    assert today["weights"] == part["weights"] != former["weights"]
    assert today["data"] != part["data"]
    assert not set(today["data"]) & set(former["data"])
