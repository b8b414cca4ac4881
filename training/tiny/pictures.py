"""Pictures of coloured shapes with digits on cluttered backgrounds, drawn from a seed."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from training.tiny.painting import (
    COLORS,
    SHAPES,
    DigitBank,
    Ground,
    Rng,
    Thing,
    background,
    paint_digit,
    paint_shape,
)

LONG_SIDE = 128  # every length below is in pixels of a picture whose long side has 128
MAX_THINGS = 6


@dataclass(frozen=True)
class Picture:
    """A drawn picture with what is on it.

    Attributes:
        pixels: (height, width, 3) uint8.
        things: the objects, later ones never cover earlier ones.
        owner: (height, width) uint8, 1 + index of the object that a pixel belongs to, 0 elsewhere.
        digit_owner: the same for the squares that digits are written in.
        ground: the background, where it is one that is asked about.
    """

    pixels: np.ndarray
    things: tuple[Thing, ...]
    owner: np.ndarray
    digit_owner: np.ndarray
    ground: Ground | None = None

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @property
    def scale(self) -> float:
        """Long side, as a multiple of LONG_SIDE."""
        return max(self.width, self.height) / LONG_SIDE


@functools.cache
def load_digit_bank(split: str) -> DigitBank:
    """Handwritten digits (UCI, via scikit-learn): 80% for "train", the others for "held_out"."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16 * 255).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))
    cut = int(0.8 * len(images))
    chosen = {"train": order[:cut], "held_out": order[cut:]}[split]
    return images[chosen], data.target[chosen]


def draw_picture(rng: Rng, bank: DigitBank, width: int = 128, height: int = 128) -> Picture:
    """Draws one picture of 2 to 6 objects (fewer where there is less room)."""
    scale = max(width, height) / LONG_SIDE
    things = place_things(rng, width, height)
    canvas = background(rng, width, height)
    owner = np.zeros((height, width), np.uint8)
    digit_owner = np.zeros((height, width), np.uint8)
    for number, thing in enumerate(things, start=1):
        ink = paint_shape(rng, canvas, owner, number, thing)
        if thing.digit >= 0:
            paint_digit(rng, canvas, digit_owner, number, thing, bank, ink, scale)
    return Picture(grained(rng, canvas), things, owner, digit_owner)


def grained(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """(height, width, 3) float -> uint8 with the noise of a sensor; changes the canvas."""
    height, width = canvas.shape[:2]
    if rng.random() < 0.5:
        canvas += rng.normal(0, rng.uniform(2, 9), (height, width, 1))
    else:
        canvas += rng.normal(0, rng.uniform(1, 6), (height, width, 3))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def place_things(rng: Rng, width: int, height: int) -> tuple[Thing, ...]:
    """Chooses objects that do not touch each other nor the middle lines."""
    scale = max(width, height) / LONG_SIDE
    largest = 19.0 if min(width, height) >= 80 * scale else 15.0
    room = width * height / (LONG_SIDE * scale) ** 2
    most = max(3, min(MAX_THINGS, math.ceil(MAX_THINGS * room)))
    colors, shapes = rng.permutation(len(COLORS)), rng.permutation(len(SHAPES))
    things: list[Thing] = []
    for index in range(int(rng.integers(2, most + 1))):
        spot = find_spot(rng, things, width, height, scale, largest)
        if spot is None:
            continue
        x, y, radius = spot
        # two in three objects differ from all earlier ones, so that many can be named uniquely
        color = int(colors[index] if rng.random() < 0.65 else rng.integers(len(COLORS)))
        shape = int(shapes[index] if rng.random() < 0.65 else rng.integers(len(SHAPES)))
        readable = radius >= 11 * scale and rng.random() < 0.75
        digit = int(rng.integers(10)) if readable else -1
        things.append(Thing(shape, color, digit, x, y, radius))
    return tuple(things)


def find_spot(
    rng: Rng, things: list[Thing], width: int, height: int, scale: float, largest: float
) -> tuple[float, float, float] | None:
    """A free (x, y, radius), or None after 60 attempts."""
    for _ in range(60):
        radius = rng.uniform(9, largest) * scale
        margin = radius * 1.15 + scale
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if abs(x - width / 2) < 5 * scale or abs(y - height / 2) < 5 * scale:
            continue
        if all(
            math.hypot(x - t.x, y - t.y) > (radius + t.radius) * 1.08 + 2 * scale for t in things
        ):
            return float(x), float(y), float(radius)
    return None
