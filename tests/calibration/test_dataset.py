"""The split by image, the order and the digest."""

import random

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sets import QUICK, everything, picture, refused, sample, write_set

from prunetune.calibration import (
    CalibrationSet,
    Sample,
    load_calibration,
)
from prunetune.calibration.records import Record
from prunetune.calibration.splitting import split_records


def both(records, seed, share):
    sides = split_records(records, seed=seed, held_out=share)
    assert not sides.left_out
    return sides.calibration, sides.held_out


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
    sides = both(records, seed, share)
    shuffled = random.Random(seed).sample(records, len(records))
    again = both(shuffled, seed, share)
    ids = [{r.image_id for r in side} for side in sides]
    assert not ids[0] & ids[1]
    assert all(ids)
    assert [{r.image_id for r in side} for side in again] == ids
    assert [len(side) for side in sides] == [len(side) * questions for side in ids]


def test_split_depends_on_the_seed_and_keeps_the_share():
    records = [Record((), "q", None, None, f"image-{i}") for i in range(2000)]
    first, second = (both(records, seed, 0.25)[1] for seed in (1, 2))
    assert first != second
    assert len(first) == 500
    more = [*records, *(Record((), "q", None, None, f"new-{i}") for i in range(500))]
    kept = [r for r in both(more, 1, 0.25)[1] if r in set(first)]
    assert len(kept) > 450, "added images move few others"


def test_order_is_the_seeds_and_not_the_files(tmp_path):
    one = write_set(tmp_path / "one")
    two = write_set(tmp_path / "two", order=random.Random(1).sample(range(12), 12))
    first, second = (load_calibration(str(folder), seed=3, samples=4) for folder in (one, two))
    assert first == second
    assert len(first[0]) == 4
    assert [s.id for s in first[0]] == [s.id for s in load_calibration(str(one), seed=3)[0]][:4]
    assert [s.id for s in everything(one, seed=3)] != [s.id for s in everything(one, seed=4)]
    assert [s.id for s in everything(one).limit(2)] == [s.id for s in everything(one)][:2]


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
    refused(tmp_path, "all 4 samples show pictures of the calibration data")
    write_set(tmp_path / "held_out", images=4, image_id="other")
    assert [len(side) for side in load_calibration(str(tmp_path))] == [4, 4]
