"""Held-out samples are drawn by picture, before anything is decoded."""

import pytest
from cli_runner import picture, write_rows

from prunetune.calibration import load_sides, pictures
from prunetune.calibration.drawing import draw
from prunetune.calibration.records import Record
from prunetune.spec import StudySpec


def rows(count, each=3):
    return [Record((), f"what {k} ?", None, None, f"image{k // each}") for k in range(count)]


def test_whole_pictures_are_drawn_by_a_seed():
    found = draw(rows(300), 30, 0)
    assert len(found) == 30
    named = [record.image_id for record in found]
    assert all(named.count(name) == 3 for name in named)
    assert named != sorted(named)
    assert draw(list(reversed(rows(300))), 30, 0)[0].image_id == named[0]
    assert [r.image_id for r in draw(rows(300), 30, 1)] != named
    # The twins: all of a few, and a part of one picture that has too many.
    assert draw(rows(20), 30, 0) == rows(20)
    assert len(draw(rows(50, each=50), 30, 0)) == 30


def test_rows_that_name_one_file_are_drawn_together():
    one, two = (pictures.Source(name, bytes) for name in ("a.png", "b.png"))
    joined = [Record((one,), "?", None, None, "a"), Record((one, two), "?", None, None, "a+b")]
    others = [Record((), "?", None, None, f"image{k}") for k in range(30)]
    for seed in range(20):
        found = {record.image_id for record in draw(joined + others, 8, seed)}
        assert len(found & {"a", "a+b"}) in (0, 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Rows on 300 pictures, two questions each."""
    folder = tmp_path_factory.mktemp("many")
    named = [{"file_name": f"{k}.png", "question": f"{q} ?"} for k in range(300) for q in "ab"]
    write_rows(folder, named)
    for k in range(300):
        image = picture(k % 16, (32 + k // 16, 32))
        image.putpixel((k % 32, 1), (k % 256, 7, 9))
        image.save(folder / f"{k}.png")
    return folder


def test_a_large_set_is_not_decoded_whole(many, monkeypatch):
    from prunetune.calibration import looks, sides

    decoded = []
    whole = looks.decode
    monkeypatch.setattr(looks, "decode", lambda source: decoded.append(1) or whole(source))
    monkeypatch.setattr(sides, "_FEW", 100)
    calibration, held_out = load_sides(str(many), samples=20, held_out_samples=20)
    assert len(decoded) <= 40
    assert len(calibration) == 20
    assert 10 <= len(held_out) <= 20
    assert not {s.image_id for s in calibration} & {s.image_id for s in held_out}
    again = load_sides(str(many), samples=20, held_out_samples=20)
    assert [side.digest() for side in again] == [calibration.digest(), held_out.digest()]
    # The twin: without the bound all are.
    decoded.clear()
    load_sides(str(many), samples=20)
    assert len(decoded) == 300


def test_a_spec_keeps_the_bound_and_older_specs_their_bytes(tmp_path):
    spec = StudySpec(held_out_samples=40)
    assert StudySpec.load(spec.save(tmp_path / "s.toml")).held_out_samples == 40
    assert "held_out_samples" not in StudySpec().to_toml()
    _, held_out = load_sides("tiny", samples=8, held_out_samples=40)
    assert len(held_out) <= 40
    pictures_shown = {sample.image_id for sample in held_out}
    every = load_sides("tiny", samples=8)[1]
    assert len(held_out) == sum(sample.image_id in pictures_shown for sample in every)
