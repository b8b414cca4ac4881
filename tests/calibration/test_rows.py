"""Bad rows and places: named, or skipped where that is asked for."""

import json

import pytest
from PIL import Image
from sets import encoded, everything, picture, refused, write_rows, write_set

from prunetune.calibration import (
    load_calibration,
)


def test_missing_and_wrong_places(tmp_path):
    refused(tmp_path / "nope", "does not exist", "allowed: tiny")
    refused("tny", "did you mean 'tiny'")
    refused("", "names nothing")
    refused("x" * 5000, "does not exist")
    refused("~nobody/x", "does not exist")
    refused("\0", "does not exist")
    (tmp_path / "file.txt").write_text("x")
    refused(tmp_path / "file.txt", "a file, not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no pictures", "tiny")
    (tmp_path / "empty" / "metadata.jsonl").write_text("\n")
    refused(tmp_path / "empty", "no rows")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metadata.csv").write_text("file_name\n")
    refused(tmp_path / "csv", f"hf:{tmp_path / 'csv'}")
    refused(f"{tmp_path}?quest=x", "'quest'", "allowed: question")
    refused(f"{tmp_path}?question", "KEY=VALUE")
    refused(f"{tmp_path}?question=a&question=b", "twice")


def test_a_truncated_jpeg_is_named_or_skipped(tmp_path):
    folder = write_set(tmp_path, images=4, questions=2)
    whole = encoded(picture(9, (64, 64)), "JPEG")["bytes"]
    (folder / "bad.jpg").write_bytes(whole[: len(whole) // 2])
    rows = (folder / "metadata.jsonl").read_text()
    added = [{"file_name": "bad.jpg", "question": q} for q in ("one?", "two?")]
    write_rows(folder, [json.loads(line) for line in rows.splitlines()] + added)
    refused(folder, "bad.jpg", "truncated", "--skip-bad", held_out=0)
    kept = everything(folder, skip_bad=True)
    assert len(kept) == 8
    assert kept.skipped == 1, "one bad picture, however many rows name it"
    assert "bad.jpg" in kept.skipped_names[0]
    (folder / "bad.jpg").write_bytes(whole)
    assert len(everything(folder)) == 10
    assert everything(folder).skipped == 0


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    refused(tmp_path, "a.png", "no picture of a known format", held_out=0)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    refused(tmp_path, "no picture of a known format", held_out=0)
    refused(tmp_path, "1 skipped", held_out=0, skip_bad=True)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"file_name": "gone.png", "question": "?"}, ("'gone.png'", "not a file")),
        ({"file_name": "g" * 400, "question": "?"}, ("not a file",)),
        ({"question": "?"}, ("no picture", "file_name")),
        ({"file_name": "", "question": "?"}, ("no picture",)),
        ({"file_name": 3, "question": "?"}, ("not text",)),
        ({"file_name": "0.png"}, ("no question",)),
        ({"file_name": "0.png", "question": " \t<image> "}, ("no question",)),
        ({"file_name": "0.png", "question": 5}, ("question is int",)),
        ({"file_name": "0.png", "question": "?", "answer": {}}, ("answer is dict",)),
        ({"file_name": "0.png", "conversations": "hi"}, ("conversations",)),
        ({"file_name": "0.png", "conversations": []}, ("human",)),
        ({"file_name": "http://a.b/0.png", "question": "?"}, ("not fetched",)),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path, row, parts):
    folder = write_set(tmp_path, images=1, questions=1)
    good = {"file_name": "0.png", "question": "fine?"}
    write_rows(folder, [good, row])
    refused(folder, "metadata.jsonl line 2", *parts, held_out=0)
    kept = everything(folder, skip_bad=True)
    assert [s.question for s in kept] == ["fine?"]
    assert kept.skipped == 1
    write_rows(folder, [good])
    assert everything(folder).skipped == 0


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "..\\b.png", "C:\\b.png", ".."]
)
def test_paths_that_leave_the_folder_are_always_refused(tmp_path, name):
    picture(0).save(tmp_path / "b.png")
    folder = write_set(tmp_path / "d", images=1)
    write_rows(folder, [{"file_name": name, "question": "?"}])
    refused(folder, "line 1", "leaves the folder")
    refused(folder, "leaves the folder", skip_bad=True)
    (folder / "..b").mkdir()
    picture(0).save(folder / "..b" / "b.png")
    write_rows(folder, [{"file_name": "..b/b.png", "question": "?"}])
    assert len(everything(folder)) == 1


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"file_name": "0.png", "question": "q"}\n{"file_name": ', ("line 2", "not JSON")),
        (b"[1, 2]", ("line 1", "list instead of a JSON object")),
        (b"\xff\xfe", ("UTF-8",)),
        (b"[" * 100_000, ("line 1", "not JSON")),
    ],
)
def test_metadata_that_is_not_json_lines(tmp_path, content, parts):
    folder = write_set(tmp_path, images=1)
    (folder / "metadata.jsonl").write_bytes(content)
    refused(folder, *parts)
    refused(folder, *parts, skip_bad=True)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch, recwarn):
    folder = write_set(tmp_path, images=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 16)
    assert len(everything(folder)) == 2
    for limit in (24 * 16 - 1, 24):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(folder, "0.png", "too large", str(limit), held_out=0)
    assert not recwarn.list


def test_nothing_left_on_a_side(tmp_path):
    folder = write_set(tmp_path, images=1, questions=3)
    refused(folder, "no held_out samples", "held_out=0")
    assert len(everything(folder)) == 3
    write_set(tmp_path / "two", images=2)
    assert all(len(side) for side in load_calibration(str(tmp_path / "two"), held_out=0.01))
    assert all(len(side) for side in load_calibration(str(tmp_path / "two"), held_out=0.99))


@pytest.mark.parametrize("options", [{"held_out": 1}, {"held_out": -0.1}, {"samples": 0}])
def test_bounds(tmp_path, options):
    refused(write_set(tmp_path), "allowed", **options)
