"""Runs the command line inside the test process, and makes small calibration sets."""

import contextlib
import io
import json
import logging
import warnings

import torch
from PIL import Image, ImageDraw

import prunetune
from prunetune.cli import main
from prunetune.config import PruningConfig
from prunetune.models import load_model

torch.set_num_threads(1)
NAMES = ("prunetune", "transformers", "datasets", "optuna", "huggingface_hub")


class Ran:
    """What a verb ended with."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        return json.loads(self.out.splitlines()[-1])


def call(*argv):
    """Run a verb; logging is left as it was found."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(x.level, x.handlers[:], x.propagate) for x in loggers]
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            status = main([str(arg) for arg in argv])
    finally:
        for x, (level, handlers, propagate) in zip(loggers, before):
            x.setLevel(level)
            x.handlers, x.propagate = handlers, propagate
    return Ran(status, out.getvalue(), err.getvalue())


def refused(*argv, has=(), status=2):
    """Run a verb that must fail with one line on stderr, and return the line."""
    ran = call(*argv)
    lines = ran.err.splitlines()
    assert ran.status == status, (ran.status, ran.err)
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in ran.err
    for part in has:
        assert str(part) in lines[0], lines[0]
    return lines[0]


def picture(k, size=(128, 64)):
    image = Image.new("RGB", size, (30 + 9 * k, 60, 200 - 11 * k))
    ImageDraw.Draw(image).ellipse((8 + 4 * k, 10, 40 + 4 * k, 42), fill=(250, 240, 5 * k))
    return image


def write_set(folder, calibration=4, held_out=2):
    """Write a set with named splits: one question a picture, every other one with an answer."""
    for split, count in (("calibration", calibration), ("held_out", held_out)):
        (folder / split).mkdir(parents=True)
        rows = []
        for k in range(count):
            other = max(5, calibration) * (split == "held_out")
            picture(k + other).save(folder / split / f"{split}-{k}.png")
            row = {"file_name": f"{split}-{k}.png", "question": "what color is the circle ?"}
            rows.append(row | ({"answer": "yellow"} if k % 2 == 0 else {}))
        write_rows(folder / split, rows)
    return folder


def write_rows(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def plain_set(folder, numbers):
    """A set without named splits: a part of it is held out unless other data is."""
    rows = [{"file_name": f"{k}.png", "question": "what color is it ?"} for k in numbers]
    write_rows(folder, rows)
    for k in numbers:
        picture(k).save(folder / f"{k}.png")
    return str(folder)


def truncate(path):
    """Cut a picture's file in half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def search_folder(folder, place):
    """Search a folder's model for two trials, on a set in ``place``; the config found applies.

    Returns:
        What the search ended with, and the config's path.
    """
    data, out = write_set(place / "set"), place / "out"
    ran = call(
        "search", "--model", folder, "--keep", 0.4, "--trials", 2, "--preset", "none",
        "--out", out, "--data", data, "--cache-dir", place / "cache", "--json",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert ran.json["trials"]["complete"] == 2
    assert 0 < ran.json["best"]["held_out_gap"] < 2
    path = out / "config.json"
    model = load_model(str(folder)).model
    prunetune.apply(model, PruningConfig.load(path), strict=True).remove()
    return ran, path


def verify_and_show(folder, path, place):
    """Verify what ``search_folder`` found, on its data, and draw it on a picture."""
    checked = call("verify", path, "--model", folder, "--data", place / "set", "--json")
    assert checked.status == 0, (checked.out, checked.err)
    picture(3).save(place / "one.png")
    shown = call(
        "show", path, place / "one.png", "--model", folder, "--output", place / "shown.png"
    )
    assert shown.status == 0, shown.err
    assert (place / "shown.png").stat().st_size > 1000
