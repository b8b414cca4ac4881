"""Calibration sets that are written for a test."""

import io
import json
import random

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from prunetune.calibration import Sample, load_calibration
from prunetune.errors import DataError

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


def sample(image, question="q", answer="a", kind="t", **ids):
    return Sample((image,), question, answer, kind, **ids)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}
