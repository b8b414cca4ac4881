"""Calibration sources, the split by image, the digest, and what reaches a model."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from sets import everything, picture, refused, write_rows, write_set

from prunetune.calibration import (
    load_calibration,
)

torch.set_num_threads(1)


def test_the_shipped_set_keeps_its_own_split():
    calibration, held_out = load_calibration("tiny", held_out_samples=40)
    assert len(calibration) == 160
    assert len(held_out) == 40
    assert {s.image_id.split("-")[0] for s in calibration} == {"calibration"}
    assert {s.image_id.split("-")[0] for s in held_out} == {"held_out"}
    assert all(s.answer and s.type and s.question for s in calibration)
    assert all(len(s.images) == 1 and s.images[0].mode == "RGB" for s in calibration)
    assert len({s.id for s in calibration}) == 160


def test_a_folder_with_metadata(tmp_path):
    write_rows(
        write_set(tmp_path / "d", images=2, questions=1),
        [
            {"file_name": "0.png", "question": "how many?", "answer": 3, "type": "count"},
            {"file_name": "1.png", "question": "what?", "image_id": 7, "answer": ["a", "b", "b"]},
        ],
    )
    by_question = {s.question: s for s in everything(tmp_path / "d")}
    assert by_question["how many?"].answer == "3"
    assert by_question["how many?"].type == "count"
    assert by_question["how many?"].image_id == "0.png"
    assert by_question["what?"].image_id == "7"
    assert by_question["what?"].answer == "b"
    assert by_question["what?"].images[0].tobytes() == picture(1).tobytes()


def test_jsonl_elsewhere_json_lists_and_llava_conversations(tmp_path):
    write_set(tmp_path / "d" / "pictures", images=1)
    turns = [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A square."},
        {"from": "human", "value": "And now?"},
    ]
    row = {"id": "x", "image": "pictures/0.png", "conversations": turns}
    write_rows(tmp_path / "d", [row], "llava.jsonl")
    (tmp_path / "d" / "llava.json").write_text(json.dumps([row]))
    for name in ("llava.jsonl", "llava.json"):
        (sample,) = everything(tmp_path / "d" / name)
        assert (sample.question, sample.answer) == ("What is this?", "A square.")


def test_a_folder_without_metadata_gets_a_generic_prompt(tmp_path):
    (tmp_path / "sub").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "sub" / f"{i}.jpg")
    assert {s.question for s in everything(tmp_path)} == {"Describe the image."}
    assert {s.image_id for s in everything(tmp_path)} == {f"sub/{i}.jpg" for i in range(3)}
    for text in ("What is this?", "What is 2+2?", "100%25 R&D & C++?", "a=b? c&&d"):
        assert {s.question for s in everything(f"{tmp_path}?question={text}")} == {text}
    refused(f"{tmp_path}?question=AT&T=what", "'T'", "metadata.jsonl")
    before = everything(f"{tmp_path}?question=What+is%20this?", as_before=True)
    assert {s.question for s in before} == {"What is this?"}, "a study of 0.1 goes on"


def test_a_default_question_fills_rows_without_one(tmp_path):
    folder = write_set(tmp_path, images=1, questions=1)
    write_rows(folder, [{"file_name": "0.png"}])
    assert everything(f"{folder}?question=Why?")[0].question == "Why?"
    refused(folder, "no question", "line 1", held_out=0)


def test_several_pictures_in_one_row(tmp_path):
    folder = write_set(tmp_path, images=3)
    write_rows(folder, [{"file_names": ["0.png", "2.png"], "question": "same?"}])
    (sample,) = everything(folder)
    assert [i.tobytes() for i in sample.images] == [picture(0).tobytes(), picture(2).tobytes()]
    assert len(sample.images[1:]) == 1


def test_samples_pickle(tmp_path):
    sample = everything(write_set(tmp_path))[0]
    again = pickle.loads(pickle.dumps(sample))  # noqa: S301
    assert again == sample
    assert again.images[0].tobytes() == sample.images[0].tobytes()


@pytest.mark.parametrize(("also", "clean"), [("", True), ("import huggingface_hub; ", False)])
def test_importing_calibration_imports_nothing_heavy(also, clean):
    code = (
        f"import sys, prunetune.calibration; {also}"
        "print(not {'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(clean)
