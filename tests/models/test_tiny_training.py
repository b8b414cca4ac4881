"""What training tells the decoder's text tokens, against the answers that they lead to; its end."""

import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the digits of the pictures come with scikit-learn")

from training.tiny import train
from training.tiny.batches import ONE_THING, empty_row, write
from training.tiny.kinds import KINDS
from training.tiny.painting import COLORS, GROUND_COLORS, PATTERNS, SHAPES, TONES
from training.tiny.pictures import load_digit_bank
from training.tiny.questions import ALL_TYPES
from training.tiny.views import UNKNOWN

BUSY = KINDS["busy"]


def written(kind, count=12):
    """Yield a picture's question of a kind, and the row that it alone is written into."""
    for seed in range(count):
        picture = BUSY.draw(np.random.default_rng([9, seed]), load_digit_bank("train"), 128, 128)
        question = BUSY.asker(picture, np.random.default_rng([10, seed])).ask(kind)
        if question is not None:
            row = empty_row(0)
            write(row, 0, 0, question, picture, 0)
            yield question, row


def told(meant):
    """The words that a labelled token knows of its object."""
    color, tone, shape, digit = (int(value) for value in meant)
    known = {COLORS[color], TONES[tone], SHAPES[shape]} - {""}
    return known | ({str(digit)} if digit != UNKNOWN else set())


@pytest.mark.parametrize("kind", [k for k in ALL_TYPES if k in ONE_THING])
def test_a_token_that_leads_to_an_answer_knows_its_object(kind):
    asked = list(written(kind))
    assert len(asked) > 5
    for question, row in asked:
        start = len(question.words)
        for place, word in enumerate(question.answer):
            assert word in told(row.meant[start + place]), (question, place)
        assert (row.meant[len(question.words) + 1 + len(question.answer) :] == UNKNOWN).all()


def test_a_list_knows_its_next_object_one_word_before():
    asked = list(written("list", 30))
    assert len(asked) > 5
    for question, row in asked:
        start = len(question.words)
        for place, word in enumerate(question.answer):
            assert word in told(row.meant[start + place]), (question, place)


def test_the_background_is_known_where_it_is_described():
    asked = list(written("background"))
    assert len(asked) > 5
    for question, row in asked:
        pattern, color, tone = row.about[len(question.words)]
        known = {PATTERNS[pattern], GROUND_COLORS[color], TONES[tone]}
        assert set(question.answer) <= known
        assert (row.meant == UNKNOWN).all()


def test_what_speaks_of_no_object_is_told_none():
    for kind in ("count", "exists"):
        for _, row in written(kind):
            assert (row.meant == UNKNOWN).all()
            assert (row.about == UNKNOWN).all()


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ((KILLED, "pass"), 128 + signal.SIGKILL),
        (("pass", KILLED), 128 + signal.SIGKILL),
        (("raise SystemExit(3)", "pass"), 3),
        (("pass", "pass"), 0),
    ],
    ids=["first killed", "last killed", "failed", "twin"],
)
def test_training_has_failed_where_one_of_its_processes_has(monkeypatch, codes, status):
    """Red while a process that a signal ended counted as less than one that ended well."""
    real = subprocess.Popen
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda _, env: real([sys.executable, "-c", codes[int(env["RANK"])]], env=env),
    )
    assert train.launch(2) == status
