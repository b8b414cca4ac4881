"""Questions that only busy pictures allow: an object by its corner, and the background."""

from collections.abc import Callable

from training.tiny.painting import GROUND_COLORS, PATTERNS, SHAPES, TONES, Rng
from training.tiny.pictures import Picture
from training.tiny.questions import Asker, Question, color_of

BACKGROUND_WORDS = {
    "pattern": "what pattern is the background ?",
    "color": "what color is the background ?",
    "both": "describe the background ?",
}


class BusyAsker(Asker):
    """Asks about objects as for plain pictures, and for names and the background.

    A color word means all its tones wherever it names, counts or lists ("the red object" may
    be dark red); where the color itself is asked for, the answer says the tone.
    """

    def __init__(self, picture: Picture, rng: Rng) -> None:
        super().__init__(picture, rng)
        self.ground = picture.ground

    def makers(self) -> dict[str, Callable[[], Question | None]]:
        """Those of every picture and two more."""
        return {**super().makers(), "name": self._name, "background": self._background}

    def _name(self) -> Question | None:
        """What stands in a corner that has one object: two or three words."""
        corners = [self.quadrant(t) for t in self.things]
        options = [i for i, corner in enumerate(corners) if corners.count(corner) == 1]
        if not options:
            return None
        index = self._pick(options)
        t = self.things[index]
        answer = f"{color_of(t)} {SHAPES[t.shape]}"
        return self._about("name", "what object is", index, [corners[index]], answer)

    def _background(self) -> Question | None:
        """Its pattern (one word), its color (two) or both (three)."""
        if self.ground is None:
            return None
        form = self._pick(list(BACKGROUND_WORDS))
        pattern = PATTERNS[self.ground.pattern]
        color = f"{TONES[self.ground.tone]} {GROUND_COLORS[self.ground.color]}"
        answer = {"pattern": pattern, "color": color, "both": f"{color} {pattern}"}[form]
        words = tuple(BACKGROUND_WORDS[form].split())
        return Question("background", words, tuple(answer.split()))
