"""Questions about a picture, with answers that are certain by construction."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.tiny.painting import COLORS, SHAPES, TONES, Rng, Thing
from training.tiny.pictures import Picture

ONE_WORD_TYPES = (
    "color",
    "shape",
    "digit",
    "count",
    "where",
    "relation",
    "exists",
    "by_digit",
)
TYPES = (*ONE_WORD_TYPES, "list")
BUSY_TYPES = ("name", "background")  # of busy pictures only
ALL_TYPES = (*TYPES, *BUSY_TYPES)
PLURALS = tuple("crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES)
RELATION_MARGIN = 10  # pixels, at a long side of 128
LIST_MARGIN = 6


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        marks: (word, thing) pairs: after reading that word of question + "ASSISTANT:" + answer,
            a reader knows which thing is meant. Training asks for the thing's place there.
    """

    type: str
    words: tuple[str, ...]
    answer: tuple[str, ...]
    marks: tuple[tuple[int, int], ...] = ()


def color_of(t: Thing) -> str:
    """One word, or two where the object is lighter or darker than its color usually is."""
    return f"{TONES[t.tone]} {COLORS[t.color]}".strip()


class Asker:
    """Asks questions about one picture; things are only ever named by unique descriptions."""

    def __init__(self, picture: Picture, rng: Rng) -> None:
        self.things = picture.things
        self.width, self.height, self.scale = picture.width, picture.height, picture.scale
        self.rng = rng
        self.shapes = Counter(t.shape for t in self.things)
        self.colors = Counter(t.color for t in self.things)
        self.pairs = Counter((t.shape, t.color) for t in self.things)
        self.digits = Counter(t.digit for t in self.things if t.digit >= 0)

    def ask(self, kind: str) -> Question | None:
        """A random question of a type, or None where the picture allows none."""
        return self.makers()[kind]()

    def makers(self) -> dict[str, Callable[[], Question | None]]:
        """What asks a question of each type."""
        return {
            "color": lambda: self._attribute("color"),
            "shape": lambda: self._attribute("shape"),
            "digit": self._digit,
            "count": self._count,
            "where": self._where,
            "relation": self._relation,
            "exists": self._exists,
            "by_digit": self._by_digit,
            "list": lambda: next((q for q in (self._list() for _ in range(4)) if q), None),
        }

    def _pick(self, options: list) -> object:
        return options[int(self.rng.integers(len(options)))]

    def _names(self, t: Thing, kinds: str = "scb") -> list[list[str]]:
        """Unique descriptions of a thing: by shape (s), by color (c), by both (b)."""
        names = []
        if "s" in kinds and self.shapes[t.shape] == 1:
            names.append([SHAPES[t.shape]])
        if "c" in kinds and self.colors[t.color] == 1:
            names.append([COLORS[t.color], "object"])
        if "b" in kinds and self.pairs[t.shape, t.color] == 1:
            names.append([COLORS[t.color], SHAPES[t.shape]])
        return names

    def _named(self, kinds: str = "scb", digit: bool = False) -> list[int]:
        return [
            i
            for i, t in enumerate(self.things)
            if self._names(t, kinds) and (t.digit >= 0 or not digit)
        ]

    def _about(self, kind: str, start: str, index: int, name: list[str], answer: str) -> Question:
        words = (*start.split(), *name, "?")
        return Question(kind, words, tuple(answer.split()), ((len(words) - 2, index),))

    def _attribute(self, kind: str) -> Question | None:
        """The color of the only star; the shape of the only red object."""
        by = "s" if kind == "color" else "c"
        options = self._named(by)
        if not options:
            return None
        index = self._pick(options)
        t = self.things[index]
        answer = color_of(t) if kind == "color" else SHAPES[t.shape]
        return self._about(kind, f"what {kind} is the", index, self._names(t, by)[0], answer)

    def _digit(self) -> Question | None:
        options = self._named(digit=True)
        if not options:
            return None
        index = self._pick(options)
        t = self.things[index]
        name = self._pick(self._names(t))
        return self._about("digit", "what digit is on the", index, name, str(t.digit))

    def _by_digit(self) -> Question | None:
        options = [i for i, t in enumerate(self.things) if self.digits.get(t.digit) == 1]
        if not options:
            return None
        index = self._pick(options)
        t, color = self.things[index], self.rng.random() < 0.5
        start = f"what {'color' if color else 'shape'} is the object with digit"
        answer = color_of(t) if color else SHAPES[t.shape]
        return self._about("by_digit", start, index, [str(t.digit)], answer)

    def _where(self) -> Question | None:
        options = self._named()
        if not options:
            return None
        index = self._pick(options)
        t = self.things[index]
        name = self._pick(self._names(t))
        return self._about("where", "where is the", index, name, self.quadrant(t))

    def quadrant(self, t: Thing) -> str:
        """The quarter of the picture that an object's centre is in."""
        return ("top" if t.y < self.height / 2 else "bottom") + (
            "left" if t.x < self.width / 2 else "right"
        )

    def _count_once(self) -> Question:
        chance = self.rng.random()
        if chance < 0.2:
            return Question("count", ("how", "many", "objects", "?"), (str(len(self.things)),))
        known = self.rng.random() < 0.75
        if chance < 0.6:
            color = self._pick(self.things).color if known else int(self.rng.integers(len(COLORS)))
            words = ("how", "many", COLORS[color], "objects", "?")
            return Question("count", words, (str(self.colors[color]),))
        shape = self._pick(self.things).shape if known else int(self.rng.integers(len(SHAPES)))
        return Question("count", ("how", "many", PLURALS[shape], "?"), (str(self.shapes[shape]),))

    def _count(self) -> Question:
        question = self._count_once()
        for _ in range(3):
            # "1" and "0" would be most answers otherwise, and guessing them would pay
            if question.answer[0] in "01" and self.rng.random() < 0.6:
                question = self._count_once()
        return question

    def _relation(self) -> Question | None:
        options = self._named()
        if len(options) < 2:
            return None
        for _ in range(8):
            i, j = (int(k) for k in self.rng.choice(options, 2, replace=False))
            a, b, across = self.things[i], self.things[j], self.rng.random() < 0.5
            ahead = b.x - a.x if across else b.y - a.y
            if abs(ahead) < RELATION_MARGIN * self.scale:
                continue
            first = self.rng.random() < 0.5
            relation = (
                (["left", "of"] if first else ["right", "of"])
                if across
                else (["above"] if first else ["below"])
            )
            start = ["is", "the", *self._pick(self._names(a))]
            words = (*start, *relation, "the", *self._pick(self._names(b)), "?")
            answer = "yes" if (ahead > 0) == first else "no"
            marks = ((len(start) - 1, i), (len(words) - 2, j))
            return Question("relation", words, (answer,), marks)
        return None

    def _exists(self) -> Question | None:
        if self.rng.random() < 0.5:
            t = self._pick(self.things)
            words = ("is", "there", "a", COLORS[t.color], SHAPES[t.shape], "?")
            return Question("exists", words, ("yes",))
        for _ in range(8):
            # the hard case: color and shape both occur, on different things
            if self.rng.random() < 0.6:
                color, shape = self._pick(self.things).color, self._pick(self.things).shape
            else:
                color = int(self.rng.integers(len(COLORS)))
                shape = int(self.rng.integers(len(SHAPES)))
            if self.pairs[shape, color] == 0:
                words = ("is", "there", "a", COLORS[color], SHAPES[shape], "?")
                return Question("exists", words, ("no",))
        return None

    def _list(self) -> Question | None:
        """Colors, shapes or digits in reading order; the answer has two to six words."""
        what = ("colors", "shapes", "digits")[int(self.rng.integers(3))]
        across = self.rng.random() < 0.5
        chosen = [(t.x if across else t.y, i) for i, t in enumerate(self.things)]
        if what == "digits":
            chosen = [(at, i) for at, i in chosen if self.things[i].digit >= 0]
        chosen.sort()
        gaps = np.diff([at for at, _ in chosen])
        if len(chosen) < 2 or gaps.min() < LIST_MARGIN * self.scale:
            return None
        order = [self.things[i] for _, i in chosen]
        answer = {
            "colors": [COLORS[t.color] for t in order],
            "shapes": [SHAPES[t.shape] for t in order],
            "digits": [str(t.digit) for t in order],
        }[what]
        direction = "left to right" if across else "top to bottom"
        words = tuple(f"list the {what} from {direction} ?".split())
        marks = tuple((len(words) + 1 + n, i) for n, (_, i) in enumerate(chosen))
        return Question("list", words, tuple(answer), marks)
