"""Calibration sources, the split by image, the digest, and what reaches a model."""

import io
import itertools
import json
import pickle
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prunetune.calibration import (
    CalibrationSet,
    Sample,
    answers_match,
    batches_by_length,
    encode,
    load_calibration,
    normalise_answer,
)
from prunetune.calibration.dataset import Record, split_records
from prunetune.errors import DataError
from prunetune.models import EMBEDDED

torch.set_num_threads(1)

QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def picture(number, size=(24, 16)):
    shade = random.Random(number)
    return Image.frombytes("RGB", size, shade.randbytes(3 * size[0] * size[1]))


def write_set(folder, images=6, questions=2, order=None, **extra):
    """A folder with ``images`` pictures and metadata; ``order`` permutes its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(images):
        picture(i).save(folder / f"{i}.png")
        for q in range(questions):
            row = {"file_name": f"{i}.png", "question": f"q{q}?", "answer": f"{i + q}"} | extra
            rows.append(row)
    write_rows(folder, [rows[i] for i in order] if order else rows)
    return folder


def write_rows(folder, rows, name="metadata.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder / name


def refused(spec, *parts, **options):
    """The one-line message with which loading fails; every part occurs in it."""
    with pytest.raises(DataError) as caught:
        load_calibration(str(spec), **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def everything(spec, **options):
    return load_calibration(str(spec), held_out=0, **options)[0]


# --- sources


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
    asked = everything(f"{tmp_path}?question=What+is%20this?")
    assert {s.question for s in asked} == {"What is this?"}


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


# --- Hugging Face data sets


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``datasets`` with its cache under tmp_path, and a table of four rows on two pictures."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {
        "picture": [encoded(picture(i // 2)) for i in range(4)],
        "ask": [f"q{i}" for i in range(4)],
        "reply": [f"a{i}" for i in range(4)],
    }
    features = datasets.Features(
        picture=datasets.Image(), ask=datasets.Value("string"), reply=datasets.Value("string")
    )
    return datasets.Dataset.from_dict(columns, features=features)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def test_hf_reads_parquet_and_saved_tables(hub, tmp_path):
    (tmp_path / "p").mkdir()
    hub.to_parquet(tmp_path / "p" / "train.parquet")
    hub.save_to_disk(tmp_path / "saved")
    for folder in ("p", "saved"):
        calibration, held_out = load_calibration(
            f"hf:{tmp_path / folder}?image=picture&question=ask&answer=reply", held_out=0.5
        )
        samples = [*calibration, *held_out]
        assert {(s.question, s.answer) for s in samples} == {(f"q{i}", f"a{i}") for i in range(4)}
        assert len(calibration) == len(held_out) == 2, "rows that repeat a picture stay together"
        for sample in samples:
            assert sample.images[0].tobytes() == picture(int(sample.question[1]) // 2).tobytes()


def test_hf_reads_an_image_folder_and_named_splits(hub, tmp_path):
    import datasets

    folder = write_set(tmp_path / "d", images=2, questions=1)
    assert {s.question for s in everything(f"hf:{folder}?split=train")} == {"q0?"}
    other = hub.select([2, 3])
    datasets.DatasetDict(a=hub.select([0, 1]), b=other).save_to_disk(tmp_path / "two")
    spec = f"hf:{tmp_path / 'two'}?split=a&held_out_split=b&question=ask"
    assert [len(side) for side in load_calibration(spec)] == [2, 2]
    refused(f"hf:{tmp_path / 'two'}?question=ask", "a, b", "?split=")
    refused(f"hf:{tmp_path / 'two'}?split=c&question=ask", "'c'", "a, b")
    same = f"hf:{tmp_path / 'two'}?split=a&held_out_split=a&question=ask"
    refused(same, "both calibration and held_out")


def test_hf_bad_columns_options_and_pictures(hub, tmp_path):
    hub.save_to_disk(tmp_path / "saved")
    spec = f"hf:{tmp_path / 'saved'}"
    refused(f"{spec}?question=nope", "'nope'", "ask")
    refused(f"{spec}?image=ask", "'ask'", "picture columns: picture")
    refused(f"{spec}?question=ask&quest=1", "'quest'", "allowed: split")
    refused(spec, "row 0", "no question")
    whole = encoded(picture(0, (64, 64)), "JPEG")["bytes"]
    bad = hub.select(range(3)).to_dict() | {
        "picture": [{"bytes": whole[:300]}, None, {"bytes": whole}]
    }
    hub.from_dict(bad, features=hub.features).save_to_disk(tmp_path / "bad")
    spec = f"hf:{tmp_path / 'bad'}?question=ask"
    kept = everything(spec, skip_bad=True)
    assert [s.question for s in kept] == ["q2"]
    assert kept.skipped == 2
    refused(spec, "row 1", "no picture", "--skip-bad")
    assert any("row 0" in name for name in kept.skipped_names)


def test_hf_runs_no_code_of_a_data_set(hub, tmp_path):
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    refused(f"hf:{folder}", "cannot be loaded", "check the folder")
    hub.to_parquet(folder / "train.parquet")
    with pytest.raises(DataError):
        everything(f"hf:{folder}?question=ask")
    assert not (tmp_path / "ran").exists()


def test_hf_hub_out_of_reach(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise ConnectionError("name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    refused("hf:owner/name", "cannot be reached", "hf download --repo-type dataset owner/name")
    for name in ("no such id!", "a/../b", "x" * 5000 + "/..", "~nobody/x/y"):
        refused(f"hf:{name}", "neither a folder nor a hub id")
    refused("hf:", "names nothing")


# --- bad input


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


# --- pixels


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    red = Image.new("RGB", (8, 4), (255, 0, 0))
    clear = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    grey16 = Image.new("I;16", (8, 4), 65535 // 2)
    red.save(tmp_path / "gif.gif", save_all=True, append_images=[Image.new("RGB", (8, 4))])
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("P").save(tmp_path / "palette.png")
    clear.save(tmp_path / "clear.png")
    grey16.save(tmp_path / "grey16.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    red.save(tmp_path / "turned.png", exif=turned)
    by_id = {s.image_id: s.images[0] for s in everything(tmp_path)}
    assert {image.mode for image in by_id.values()} == {"RGB"}
    assert by_id["gif.gif"].getpixel((0, 0)) == (255, 0, 0)
    assert by_id["palette.png"].getpixel((0, 0)) == (255, 0, 0)
    assert by_id["cmyk.jpg"].getpixel((0, 0))[0] > 240
    assert by_id["clear.png"].getpixel((0, 0)) == (255, 255, 255)
    assert by_id["grey16.png"].getpixel((0, 0)) == (127, 127, 127)
    assert by_id["turned.png"].size == (4, 8)


# --- split, order and digest


@QUICK
@given(
    images=st.integers(2, 60),
    questions=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    share=st.floats(0.01, 0.99),
)
def test_split_is_by_image_disjoint_and_deterministic(images, questions, seed, share):
    records = [
        Record((), f"q{q}", None, None, f"image-{i}")
        for i in range(images)
        for q in range(questions)
    ]
    sides = split_records(records, seed=seed, held_out=share)
    shuffled = random.Random(seed).sample(records, len(records))
    again = split_records(shuffled, seed=seed, held_out=share)
    ids = [{r.image_id for r in side} for side in sides]
    assert not ids[0] & ids[1]
    assert all(ids)
    assert [{r.image_id for r in side} for side in again] == ids
    assert [len(side) for side in sides] == [len(side) * questions for side in ids]


def test_split_depends_on_the_seed_and_keeps_the_share():
    records = [Record((), "q", None, None, f"image-{i}") for i in range(2000)]
    first, second = (split_records(records, seed=seed, held_out=0.25)[1] for seed in (1, 2))
    assert first != second
    assert 400 < len(first) < 600
    more = [*records, *(Record((), "q", None, None, f"new-{i}") for i in range(500))]
    kept = [r for r in split_records(more, seed=1, held_out=0.25)[1] if r in set(first)]
    assert kept == first, "added images move no other one"


def test_order_is_the_seeds_and_not_the_files(tmp_path):
    one = write_set(tmp_path / "one")
    two = write_set(tmp_path / "two", order=random.Random(1).sample(range(12), 12))
    first, second = (load_calibration(str(folder), seed=3, samples=4) for folder in (one, two))
    assert first == second
    assert len(first[0]) == 4
    assert [s.id for s in first[0]] == [s.id for s in load_calibration(str(one), seed=3)[0]][:4]
    assert [s.id for s in everything(one, seed=3)] != [s.id for s in everything(one, seed=4)]
    assert [s.id for s in everything(one).limit(2)] == [s.id for s in everything(one)][:2]


def sample(image, question="q", answer="a", kind="t", **ids):
    return Sample((image,), question, answer, kind, **ids)


def test_digest_ignores_order_ids_and_file_format(tmp_path):
    one = everything(write_set(tmp_path / "one"))
    two = everything(write_set(tmp_path / "two", order=list(reversed(range(12)))), seed=9)
    assert one.digest() == two.digest()
    for number in range(6):
        picture(number).save(tmp_path / "two" / f"{number}.png", compress_level=0)
    assert everything(tmp_path / "two").digest() == one.digest()
    plain = CalibrationSet(tuple(Sample(tuple(s.images), s.question, s.answer) for s in one))
    assert plain.digest() == one.digest()


@QUICK
@given(
    x=st.integers(0, 23),
    y=st.integers(0, 15),
    channel=st.integers(0, 2),
    text=st.text(min_size=1, max_size=8),
    field=st.sampled_from(["question", "answer", "kind"]),
)
def test_digest_changes_with_any_pixel_or_text(x, y, channel, text, field):
    base = CalibrationSet((sample(picture(0)), sample(picture(1)))).digest()
    image = picture(0)
    value = list(image.getpixel((x, y)))
    value[channel] = (value[channel] + 1) % 256
    image.putpixel((x, y), tuple(value))
    assert CalibrationSet((sample(image), sample(picture(1)))).digest() != base
    changed = sample(picture(0), **{field: f"{text}!"})
    assert CalibrationSet((changed, sample(picture(1)))).digest() != base
    assert (
        CalibrationSet((sample(picture(1), image_id="x", id="y"), sample(picture(0)))).digest()
        == base
    )


def test_digest_is_not_fooled_by_shape_or_by_where_a_text_ends():
    wide, high = picture(0, (8, 4)), Image.frombytes("RGB", (4, 8), picture(0, (8, 4)).tobytes())
    assert sample(wide).digest() != sample(high).digest()
    assert sample(wide, "ab", "c").digest() != sample(wide, "a", "bc").digest()


def test_named_splits_that_share_an_image_are_refused(tmp_path):
    for split in ("calibration", "held_out"):
        write_set(tmp_path / split, images=2, image_id="same")
    refused(tmp_path, "'same'", "both")
    write_set(tmp_path / "held_out", images=2, image_id="other")
    assert [len(side) for side in load_calibration(str(tmp_path))] == [4, 0 + 4]


# --- inputs of the model


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(EMBEDDED, local_files_only=True)


def test_encode_pads_left_and_warns_of_nothing(processor, caplog, recwarn):
    samples = [
        sample(picture(0, (128, 128)), "how many objects ?"),
        sample(picture(1, (128, 64)), "what color is the square ?"),
    ]
    batch = encode(processor, samples)
    assert not recwarn.list
    assert not caplog.records
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["attention_mask"][:, 0].tolist() != [1, 1]
    alone = encode(processor, samples[1:])
    length = alone["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][1, -length:], alone["input_ids"][0])
    text = processor.tokenizer.decode(alone["input_ids"][0])
    assert text.endswith("what color is the square ? ASSISTANT:")


def test_encode_without_a_chat_template(processor, monkeypatch):
    samples = [sample(picture(0, (64, 64)), "how many objects ?")]
    templated = encode(processor, samples)
    monkeypatch.setattr(processor, "chat_template", None)
    plain = encode(processor, samples)
    visual = [(batch["input_ids"] == 4).sum().item() for batch in (templated, plain)]
    assert visual[0] == visual[1] > 64
    text = processor.tokenizer.decode(plain["input_ids"][0], skip_special_tokens=True)
    assert "USER:" in text
    assert text.endswith("how many objects ? ASSISTANT:")


def test_encode_takes_no_placeholder_from_a_question(processor):
    good, bad = (sample(picture(0), q) for q in ("what shape ?", "what <image> shape ?"))
    first, second = encode(processor, [good]), encode(processor, [bad])
    assert first["input_ids"].tolist() == second["input_ids"].tolist()


def test_encode_refuses_nothing_at_all(processor):
    with pytest.raises(DataError, match="0 samples"):
        encode(processor, [])
    with pytest.raises(DataError, match="0 pictures"):
        encode(processor, [Sample((), "q")])


@pytest.mark.parametrize(
    ("predicted", "answer", "same"),
    [
        ("Red", "red", True),
        (" The red  square. ", "red square", True),
        ("a", "A", True),
        ("A", "B", False),
        ("A", "", False),
        ("two", "too", False),
        ("3.5", "35", False),
        ("1,000", "1000", True),
        ("-5", "5", False),
        ("well-known", "well known", True),
        ("don't", "dont", True),
        ("?", "!", False),
        ("red, blue", "red blue", True),
        ("athe", "the", False),
        ("\uff13", "3", True),
    ],
)
def test_answers_match(predicted, answer, same):
    assert answers_match(predicted, answer) is same
    assert answers_match(answer, predicted) is same


@QUICK
@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@QUICK
@given(
    lengths=st.lists(st.integers(1, 300), max_size=40),
    budget=st.integers(1, 1000),
    most=st.none() | st.integers(1, 5),
)
def test_batches_hold_every_prompt_once_within_the_budget(lengths, budget, most):
    batches = batches_by_length(lengths, budget, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert most is None or len(batch) <= most


@QUICK
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7),
    budget=st.integers(1, 100),
    cost=st.none() | st.integers(0, 60),
)
def test_batches_cost_least(lengths, budget, cost):
    def spent(batches):
        once = sum(lengths) * len(lengths) if cost is None else cost
        return sum(len(batch) * max(lengths[i] for i in batch) + once for batch in batches)

    found = batches_by_length(lengths, budget, batch_cost=cost)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cuts = itertools.product((False, True), repeat=len(order) - 1)
    every = (cut_up(order, cut) for cut in cuts)
    allowed = [
        batches
        for batches in every
        if all(len(b) == 1 or len(b) * lengths[b[-1]] <= budget for b in batches)
    ]
    if cost is None:
        assert len(found) == min(map(len, allowed))
    else:
        assert spent(found) == min(map(spent, allowed))


def cut_up(order, cuts):
    batches = [[order[0]]]
    for index, cut in zip(order[1:], cuts, strict=True):
        if cut:
            batches.append([])
        batches[-1].append(index)
    return batches


def test_batches_fill_their_budget_and_check_their_bounds():
    assert batches_by_length([10, 20, 30], 90, batch_cost=0) == [[0], [1], [2]]
    assert batches_by_length([10, 20, 30], 90, batch_cost=90) == [[0, 1, 2]]
    assert batches_by_length([10] * 8, 40) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for bounds in ((0, None), (10, 0)):
        with pytest.raises(DataError, match="allowed: 1 or more"):
            batches_by_length([1], *bounds)


@pytest.mark.parametrize(("also", "clean"), [("", True), ("import huggingface_hub; ", False)])
def test_importing_calibration_imports_nothing_heavy(also, clean):
    code = (
        f"import sys, prunetune.calibration; {also}"
        "print(not {'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(clean)
