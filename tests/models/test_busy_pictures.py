"""Busy pictures: drawn from the seed only, and every answer is what the picture shows."""

import colorsys
import hashlib
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the digits of the pictures come with scikit-learn")

from training.tiny.busy.clutter import MOST_HIDDEN
from training.tiny.kinds import KINDS
from training.tiny.make_calibration import picture_of, questions_of
from training.tiny.model import vocabulary
from training.tiny.painting import (
    COLORS,
    GROUND_COLORS,
    HSV,
    PATTERNS,
    SHAPES,
    TONES,
    shape_alpha,
)
from training.tiny.pictures import load_digit_bank
from training.tiny.questions import ALL_TYPES, PLURALS

SIZES = ((128, 128), (128, 64), (96, 128), (150, 100))
BUSY = KINDS["busy"]
PLAIN_DIGEST = "4729a61d1b8789f78e3d886d1ff64f3b85451f01660754ea8bc482c861c2f70f"


def drawn(seed, size=(128, 128)):
    return BUSY.draw(np.random.default_rng([7, seed]), load_digit_bank("train"), *size)


@pytest.fixture(scope="module")
def pictures():
    return [drawn(seed, SIZES[seed % 4]) for seed in range(60)]


def asked(picture, seed, rounds=3):
    asker = BUSY.asker(picture, np.random.default_rng([8, seed]))
    found = [asker.ask(kind) for kind in BUSY.types for _ in range(rounds)]
    return [question for question in found if question]


def test_the_plain_kind_is_what_it_was():
    digest = hashlib.sha256()
    for index in range(12):
        picture = picture_of("held_out", index)
        questions = questions_of("held_out", index, picture)
        digest.update(picture.pixels.tobytes())
        said = [(q.type, q.words, q.answer, q.marks) for q in questions]
        digest.update(repr(said).encode())
    assert digest.hexdigest() == PLAIN_DIGEST


def test_a_picture_depends_on_the_seed_only():
    one, again, other = drawn(1), drawn(1), drawn(2)
    assert np.array_equal(one.pixels, again.pixels)
    assert (one.things, one.ground) == (again.things, again.ground)
    assert not np.array_equal(one.pixels, other.pixels)


def test_kinds_and_uses_share_no_seed():
    seeds = [kind.seed(use) for kind in KINDS.values() for use in ("training", "held_out")]
    assert len(set(seeds)) == len(seeds)
    busy, plain = (picture_of("held_out", 0, kind=kind) for kind in ("busy", "plain"))
    assert busy.ground
    assert not plain.ground


def test_it_is_harder_than_the_plain_kind(pictures):
    things = [t for picture in pictures for t in picture.things]
    assert min(t.radius for t in things) < 8
    assert {t.tone for t in things} == set(range(len(TONES)))
    assert {p.ground.pattern for p in pictures} == set(range(len(PATTERNS)))
    assert {p.ground.color for p in pictures} == set(range(len(GROUND_COLORS)))
    lost = [hidden(p) for p in pictures]
    assert max(map(max, lost)) > 0.05, "nothing covers anything"


def hidden(picture):
    """The share of each object that something covers, from the shape's own area."""
    areas = [int((shape_alpha(t)[0] > 0.5).sum()) for t in picture.things]
    seen = np.bincount(picture.owner.ravel(), minlength=len(areas) + 1)[1:]
    return 1 - seen / areas


def test_every_object_shows_enough_of_itself(pictures):
    for picture in pictures:
        assert (hidden(picture) <= MOST_HIDDEN + 1e-9).all()


def hue_of(picture, number):
    """Hue of an object's pixels without its digit, print and bars."""
    on = (picture.owner == number) & (picture.digit_owner != number)
    rgb = np.median(picture.pixels[on if on.sum() > 20 else picture.owner == number], 0)
    return colorsys.rgb_to_hsv(*rgb / 255)[0]


def test_the_pixels_have_the_colors_that_the_scene_says(pictures):
    right = []
    for picture in pictures:
        for number, t in enumerate(picture.things, 1):
            away = {c: abs((hue_of(picture, number) - HSV[c][0] + 0.5) % 1 - 0.5) for c in COLORS}
            right.append(min(away, key=away.get) == COLORS[t.color])
    assert np.mean(right) > 0.97


class Reader:
    """Answers questions word by word from the maps of what is where; knows no asker."""

    def __init__(self, picture):
        self.things = []
        for number, t in enumerate(picture.things, 1):
            y, x = (at.mean() for at in np.nonzero(picture.owner == number))
            row = {"x": x / picture.width, "y": y / picture.height, "digit": str(t.digit)}
            tone = [TONES[t.tone]] if t.tone else []
            row |= {"shape": SHAPES[t.shape], "color": COLORS[t.color]}
            row |= {"corner": ("bottom" if row["y"] > 0.5 else "top")}
            row["corner"] += "right" if row["x"] > 0.5 else "left"
            self.things.append(row | {"full": [*tone, COLORS[t.color]]})
        ground = picture.ground
        self.pattern = [PATTERNS[ground.pattern]]
        self.shade = [TONES[ground.tone], GROUND_COLORS[ground.color]]

    def only(self, words):
        """The one object that words name."""
        (found,) = self.all(words)
        return found

    def all(self, words):
        known = {**dict(zip(PLURALS, SHAPES)), **dict(zip(SHAPES, SHAPES))}
        shapes = [known[word] for word in words if word in known]
        colors = [word for word in words if word in COLORS]
        digits = [word for word in words if word.isdigit()]
        return [
            t
            for t in self.things
            if (not shapes or t["shape"] in shapes)
            and (not colors or t["color"] in colors)
            and (not digits or t["digit"] in digits)
        ]

    def background(self, words):
        return {
            "pattern": self.pattern,
            "color": self.shade,
            "the": self.shade + self.pattern,
        }[words[1]]

    def relation(self, words):
        cut = next(i for i, w in enumerate(words) if w in ("left", "right", "above", "below"))
        one, two = self.only(words[:cut]), self.only(words[cut + 1 :])
        axis = "x" if words[cut] in ("left", "right") else "y"
        before = one[axis] < two[axis]
        return ["yes" if before == (words[cut] in ("left", "above")) else "no"]

    def listed(self, words):
        axis = "x" if "left" in words else "y"
        key = words[2].removesuffix("s")
        order = sorted(self.things, key=lambda t: t[axis])
        return [t[key] for t in order if t[key] != "-1"]

    def answer(self, kind, words):
        if kind in ("background", "relation", "list"):
            return {"list": self.listed}.get(kind, getattr(self, kind, None))(words)
        if kind == "count":
            return [str(len(self.all(words)))]
        if kind == "exists":
            return ["yes" if self.all(words) else "no"]
        if kind == "name":
            (t,) = [t for t in self.things if t["corner"] == words[3]]
            return [*t["full"], t["shape"]]
        t = self.only(words[4:] if kind == "by_digit" else words[3:])
        if kind == "where":
            return [t["corner"]]
        return t["full"] if words[1] == "color" else [t[words[1]]]


def test_answers_are_true_to_the_picture(pictures):
    kinds = Counter()
    for seed, picture in enumerate(pictures):
        reader = Reader(picture)
        for question in asked(picture, seed):
            said = reader.answer(question.type, list(question.words))
            assert tuple(said) == question.answer, (seed, question)
            kinds[question.type] += 1
    assert set(kinds) == set(ALL_TYPES)
    assert min(kinds.values()) > 30


def test_a_wrong_answer_would_be_noticed(pictures):
    reader = Reader(pictures[0])
    other = next(p for p in pictures[1:] if p.ground != pictures[0].ground)
    questions = [q for q in asked(other, 1) if q.type == "background"]
    assert any(tuple(reader.answer(q.type, list(q.words))) != q.answer for q in questions)


def test_words_are_known_and_answers_have_up_to_three_of_them(pictures):
    lengths = Counter()
    for seed, picture in enumerate(pictures):
        for question in asked(picture, seed, rounds=1):
            assert {*question.words, *question.answer} <= vocabulary().keys()
            if question.type != "list":
                lengths[len(question.answer)] += 1
    assert set(lengths) == {1, 2, 3}
