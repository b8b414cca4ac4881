"""The embedded model answers, and its calibration data is what the generator makes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "prunetune" / "embedded" / "tiny"
DATA = ROOT / "calibration_data" / "tiny"
SPLITS = ("calibration", "held_out")

pytest.importorskip("sklearn", reason="the digits of the pictures come with scikit-learn")

from training.tiny.make_calibration import picture_of, questions_of  # noqa: E402
from training.tiny.pictures import draw_picture, load_digit_bank  # noqa: E402
from training.tiny.questions import ALL_TYPES  # noqa: E402


def rows(split: str) -> list[dict[str, str]]:
    lines = (DATA / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def pixels(split: str, name: str) -> np.ndarray:
    with Image.open(DATA / split / name) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def tiny():
    """Model and processor, loaded as a user would, without a network."""
    import torch
    from transformers import AutoProcessor, LlavaNextForConditionalGeneration

    before, threads = os.environ.get("HF_HUB_OFFLINE"), torch.get_num_threads()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    model = LlavaNextForConditionalGeneration.from_pretrained(
        MODEL, dtype=torch.float32, local_files_only=True
    )
    yield model.eval(), AutoProcessor.from_pretrained(MODEL, local_files_only=True)
    torch.set_num_threads(threads)
    os.environ.pop("HF_HUB_OFFLINE")
    if before is not None:
        os.environ["HF_HUB_OFFLINE"] = before


def answer(tiny, split: str, row: dict[str, str]) -> str:
    """The model's greedy answer through processor, chat template and generate."""
    model, processor = tiny
    content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    image = Image.fromarray(pixels(split, row["file_name"]))
    inputs = processor(images=image, text=text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()


def test_weights_are_small_enough_to_ship():
    assert (MODEL / "model.safetensors").stat().st_size <= 16 * 2**20


def test_weights_are_stored_in_half_precision():
    from safetensors import safe_open

    with safe_open(MODEL / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 == {"F16"}


def test_model_is_a_genuine_llava_next(tiny):
    model, processor = tiny
    assert type(model).__name__ == "LlavaNextForConditionalGeneration"
    assert type(processor).__name__ == "LlavaNextProcessor"
    assert model.config.text_config.num_hidden_layers == 16


def test_held_out_questions_are_answered(tiny):
    asked = [row for row in rows("held_out") if row["type"] != "list"][::10][:40]
    right = sum(answer(tiny, "held_out", row) == row["answer"] for row in asked)
    assert right >= 0.8 * len(asked), f"{right} of {len(asked)}"


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (128, 96), (150, 100)])
def test_image_tokens_match_the_picture_size(tiny, size):
    model, processor = tiny
    picture = draw_picture(np.random.default_rng(7), load_digit_bank("held_out"), *size)
    image = Image.fromarray(picture.pixels)
    inputs = processor(
        images=image, text="USER: <image> how many objects ? ASSISTANT:", return_tensors="pt"
    )
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert tokens == len(features.pooler_output[0])


def test_every_word_is_in_the_vocabulary(tiny):
    known = tiny[1].tokenizer.get_vocab()
    used = {
        word
        for split in SPLITS
        for row in rows(split)
        for word in f"{row['question']} {row['answer']}".split()
    }
    assert used <= known.keys()


def test_pictures_depend_on_the_seed_only():
    bank = load_digit_bank("train")
    first, again, other = (
        draw_picture(np.random.default_rng(seed), bank, 128, 96) for seed in (3, 3, 4)
    )
    assert np.array_equal(first.pixels, again.pixels)
    assert first.things == again.things
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize(
    ("split", "index"), [("calibration", 0), ("calibration", 14), ("held_out", 9)]
)
def test_committed_pictures_are_what_the_generator_draws(split, index):
    picture = picture_of(split, index, kind="busy")
    committed = [row for row in rows(split) if row["image_id"] == f"{split}-{index:03d}"]
    drawn = pixels(split, committed[0]["file_name"])
    assert drawn.shape == picture.pixels.shape
    assert np.abs(drawn.astype(int) - picture.pixels).max() == 0
    questions = questions_of(split, index, picture, kind="busy")
    asked = [(" ".join(q.words), " ".join(q.answer)) for q in questions]
    assert [(row["question"], row["answer"]) for row in committed] == asked


@pytest.mark.parametrize(("split", "pictures"), [("calibration", 40), ("held_out", 120)])
def test_splits_are_complete(split, pictures):
    found = rows(split)
    assert len(found) == 4 * pictures
    assert len({row["image_id"] for row in found}) == pictures
    assert {row["type"] for row in found} == set(ALL_TYPES)
    for row in found:
        assert (DATA / split / row["file_name"]).is_file()


def test_splits_share_no_picture():
    names, contents = [], []
    for split in SPLITS:
        files = sorted({row["file_name"] for row in rows(split)})
        names.append(set(files))
        contents.append({pixels(split, name).tobytes() for name in files})
    assert names[0].isdisjoint(names[1])
    assert contents[0].isdisjoint(contents[1])
    assert [len(part) for part in contents] == [40, 120]


@pytest.mark.parametrize("split", SPLITS)
def test_some_answers_have_several_words(split):
    found = rows(split)
    several = [row for row in found if len(row["answer"].split()) > 1]
    kinds = {"list", "name", "background", "color", "by_digit"}
    assert {row["type"] for row in several} == kinds
    assert 0.25 * len(found) <= len(several) <= 0.4 * len(found)


@pytest.mark.parametrize("split", SPLITS)
def test_a_share_of_pictures_is_not_square(split):
    sizes = {row["file_name"]: pixels(split, row["file_name"]).shape[:2] for row in rows(split)}
    other = [size for size in sizes.values() if size != (128, 128)]
    assert 0.1 * len(sizes) <= len(other) <= 0.3 * len(sizes)


def test_data_set_loads_as_an_imagefolder(tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(DATA / "calibration"), split="train", cache_dir=str(tmp_path)
    )
    assert len(loaded) == 160
    assert {"image", "question", "answer", "type", "image_id"} <= set(loaded.column_names)
