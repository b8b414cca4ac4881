"""Data as people have it: archives, tables of pandas, gaps, what nobody reads."""

import io
import json
import logging
import os
import zipfile

import pytest
from sets import encoded, everything, picture, refused, write_rows, write_set

from prunetune.calibration import answers_match, load_calibration
from prunetune.calibration.matching import is_right, may_become
from prunetune.calibration.references import Member


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, number in files.items():
            buffer = io.BytesIO()
            picture(number).save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
    return path


def test_archives_are_read_in_place(tmp_path):
    files = {"a/0.png": 0, "a/1.png": 1, "__MACOSX/a/._0.png": 2, ".hidden/3.png": 3}
    alone = zipped(tmp_path / "pictures.zip", files)
    assert len(everything(alone)) == 2
    assert len(everything(tmp_path)) == 2
    picture(7).save(tmp_path / "7.png")
    assert len(everything(tmp_path)) == 3
    for name in ("a/0.png", "pictures/a/0.png"):
        path = write_rows(tmp_path, [{"file_name": name, "question": "?"}], "rows.jsonl")
        assert everything(path)[0].images[0].tobytes() == picture(0).tobytes()
    # What lies beside rows by chance is not waited for.
    os.mkfifo(alone.with_name("pipe.zip"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"image": "pipe.zip", "question": "q"}')
    refused(rows, "pipe.zip", "not a file")
    with pytest.raises(OSError, match="not a plain file"):
        Member(str(tmp_path / "pipe.zip"), "a.png")()
    (tmp_path / "pipe.zip").unlink()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    refused(tmp_path, "broken.zip", "zip archive")


def test_nested_metadata_and_what_nobody_reads(tmp_path, caplog):
    write_set(tmp_path / "train", images=2, questions=1)
    picture(5).save(tmp_path / "5.png")
    assert {s.question for s in everything(tmp_path)} == {"q0?", "Describe the image."}
    plain = tmp_path / "plain"
    plain.mkdir()
    picture(6).save(plain / "6.png")
    (plain / "x.svg").write_text("<svg/>")
    write_rows(plain, [{"file_name": "6.png", "question": "what?"}], "questions.jsonl")
    with caplog.at_level(logging.WARNING):
        found = everything(plain)
    assert found[0].question == "Describe the image."
    assert "questions.jsonl is not read" in found.notes[0]
    assert "1 .svg" in found.notes[1]
    assert found.notes[0] in caplog.text
    assert everything(plain / "questions.jsonl")[0].question == "what?"


@pytest.fixture
def pandas(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return pytest.importorskip("pandas")


@pytest.mark.parametrize("form", ["struct", "bytes", "path", "list", "uri"])
def test_tables_of_pandas(pandas, tmp_path, form):
    import base64

    folder = tmp_path / "table"
    folder.mkdir()
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
    held = [encoded(picture(i))["bytes"] for i in range(4)]
    cells = {
        "struct": [{"bytes": data, "path": None} for data in held],
        "bytes": held,
        "path": [str(folder / "0.png"), "1.png", "2.png", "3.png"],
        "list": [[{"bytes": data, "path": f"{i}.png"}] for i, data in enumerate(held)],
        "uri": [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in held],
    }[form]
    rows = {"image": cells, "question": ["q"] * 4, "answer": [1.0, float("nan"), 3.5, None]}
    file = folder / "train.parquet"
    pandas.DataFrame(rows).to_parquet(file)
    found = everything(file)
    assert {s.images[0].tobytes() for s in found} == {picture(i).tobytes() for i in range(4)}
    assert sorted(str(s.answer) for s in found) == ["1", "3.5", "None", "None"]
    assert len(everything(f"hf:{file}?image=image")) == 4
    if form not in ("path",):
        for picture_file in folder.glob("*.png"):
            picture_file.unlink()
        assert len(everything(folder)) == 4, "a folder of parquet, without hf:"


def test_splits_as_datasets_writes_them(pandas, tmp_path_factory):
    # `datasets` takes a folder called test_... for a split.
    tmp_path = tmp_path_factory.mktemp("tables")
    for split, number in (("train", 0), ("validation", 4)):
        cells = [encoded(picture(number + i))["bytes"] for i in range(4)]
        pandas.DataFrame({"image": cells, "question": ["q"] * 4}).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    assert len(everything(f"hf:{tmp_path}?split=train+validation")) == 8
    assert len(everything(f"hf:{tmp_path}?split=train[:50%]+validation[1:2]")) == 3
    table = f"hf:{tmp_path / 'saved'}"
    import datasets

    loaded = datasets.load_dataset(str(tmp_path))
    loaded.save_to_disk(tmp_path / "saved")
    assert len(everything(f"{table}?split=train[:2]+validation")) == 6
    refused(f"{table}?split=train[:2]+test", "no split", "train, validation")


def test_gaps_and_answers_of_many(tmp_path):
    folder = write_set(tmp_path, images=1, questions=1)
    ten = [{"answer": a, "answer_id": i} for i, a in enumerate(["Two", "2", "two."] + ["3"] * 3)]
    rows = [
        {"file_name": "0.png", "question": "a", "answers": [*ten, {"answer": "four"}]},
        {"file_name": "0.png", "question": "b", "answers": ["x", "y"], "image_id": 7.0},
        {"file_name": "0.png", "question": "c", "answer": float("nan"), "type": float("nan")},
        {"file_name": "0.png", "question": "d", "answer": "  ", "multiple_choice_answer": "no"},
        {"file_name": "0.png", "question": "e", "multiple_choice_answer": "yes"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    by_question = {s.question: s for s in everything(folder)}
    assert by_question["a"].answer == "3"
    assert set(by_question["a"].also) == {"Two", "2", "two."}
    assert (by_question["b"].answer, by_question["b"].also) == ("x", ("y",))
    assert by_question["b"].image_id == "7"
    assert (by_question["c"].answer, by_question["c"].type) == (None, None)
    assert by_question["d"].answer is None
    assert by_question["e"].answer == "yes"
    assert load_calibration(str(folder), held_out=0, as_before=True)[0][0].answer != "yes"


@pytest.mark.parametrize(
    ("said", "answer", "wrong"),
    [
        (["Yes", "yes", "YES", "no", "no"], "Yes", "no"),
        (["pepsi", "pepsi", "Cola", "cola", "COLA", "cola."], "Cola", "pepsi"),
        (["3", "3", "two", "Two", "two.", "2"], "two", "3"),
        (["a cat", "cat", "cat", "dog", "dog"], "cat", "dog"),
    ],
)
def test_what_most_people_said_is_the_answer_however_they_spelled_it(tmp_path, said, answer, wrong):
    folder = write_set(tmp_path, images=1, questions=1)
    write_rows(folder, [{"file_name": "0.png", "question": "q", "answers": said}])
    [sample] = everything(folder)
    assert sample.answer == answer
    assert not any(answers_match(wrong, right) for right in (sample.answer, *sample.also))


@pytest.mark.parametrize("field", ["question", "answer", "type", "image_id", "file_name"])
def test_half_a_character_is_a_bad_row(tmp_path, field):
    folder = write_set(tmp_path, images=1, questions=1)
    row = {"file_name": "0.png", "question": "q", field: "half \ud83d"}
    write_rows(folder, [{"file_name": "0.png", "question": "fine"}, row])
    refused(folder, "line 2", "half a character", held_out=0)
    assert [s.question for s in everything(folder, skip_bad=True)] == ["fine"]


@pytest.mark.parametrize(
    ("said", "answer", "vqa", "contains"),
    [
        ("Orange.", "orange", True, True),
        ("The two", "2", True, True),
        ("An apple", "apple", True, True),
        ("none", "0", True, True),
        ("It is orange, I think", "orange", False, True),
        ("oranges", "orange", False, False),
        ("blue", "orange", False, False),
    ],
)
def test_matches(said, answer, vqa, contains):
    assert is_right(said, [answer], "vqa") is vqa is answers_match(said, answer)
    assert is_right(said, [answer], "contains") is contains
    assert not is_right(said, [answer], "exact")
    if vqa:
        assert all(may_become(said[:k], answer) for k in range(len(said) + 1))
    if said == "blue":
        assert not may_become(said, answer)
