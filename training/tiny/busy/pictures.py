"""Draws a busy picture: patterned background, clutter, small, faint and overlapping objects."""

import math

import numpy as np

from training.tiny.busy.clutter import (
    MOST_HIDDEN,
    paint_bar,
    paint_fragment,
    paint_outline,
    paint_print,
)
from training.tiny.busy.grounds import choose_ground, paint_ground
from training.tiny.painting import (
    COLORS,
    SHAPES,
    TONES,
    DigitBank,
    Rng,
    Thing,
    paint_digit,
    paint_shape,
)
from training.tiny.pictures import LONG_SIDE, MAX_THINGS, Picture, grained

SMALLEST, LARGEST = 7.0, 17.0  # radius, in pixels at a long side of 128
READABLE = 10.0  # radius from which on an object may carry a digit
OVERLAP = 0.92  # of the sum of two radii, the least distance of two objects


def draw_busy_picture(rng: Rng, bank: DigitBank, width: int = 128, height: int = 128) -> Picture:
    """Draws one picture of 2 to 6 objects; a draw that hides too much of one is thrown away."""
    while True:
        picture, areas = attempt(rng, bank, width, height)
        seen = np.bincount(picture.owner.ravel(), minlength=len(areas))
        if len(picture.things) > 1 and (seen[1:] >= (1 - MOST_HIDDEN) * areas[1:]).all():
            return picture


def attempt(rng: Rng, bank: DigitBank, width: int, height: int) -> tuple[Picture, np.ndarray]:
    """A picture, and (1 + objects,) the pixels of each object with nothing before it."""
    scale = max(width, height) / LONG_SIDE
    ground, things = choose_ground(rng), place_busy_things(rng, width, height)
    canvas = paint_ground(rng, ground, width, height)
    owner, digit_owner = (np.zeros((height, width), np.uint8) for _ in range(2))
    room = width * height / (LONG_SIDE * scale) ** 2
    for _ in range(round(rng.integers(3, 9) * room)):
        paint_fragment(rng, canvas, scale)
    for _ in range(round(rng.integers(0, 4) * room)):
        paint_outline(rng, canvas, scale)
    areas = np.zeros(len(things) + 1, int)
    for number, thing in enumerate(things, start=1):
        strength = rng.uniform(0.78, 0.95) if rng.random() < 0.4 else 1.0
        ink = paint_shape(rng, canvas, owner, number, thing, strength)
        areas[number] = (owner == number).sum()
        if thing.digit >= 0:
            paint_digit(rng, canvas, digit_owner, number, thing, bank, ink, scale)
    for thing in things:
        if thing.digit >= 0 and rng.random() < 0.6:
            paint_print(rng, canvas, digit_owner, thing, scale)
    for _ in range(int(rng.integers(0, 4))):
        paint_bar(rng, canvas, owner, digit_owner, areas, scale)
    return Picture(grained(rng, canvas), things, owner, digit_owner, ground), areas


def place_busy_things(rng: Rng, width: int, height: int) -> tuple[Thing, ...]:
    """Chooses objects off the middle lines, which may cover a rim of earlier ones."""
    scale = max(width, height) / LONG_SIDE
    room = width * height / (LONG_SIDE * scale) ** 2
    most = max(3, min(MAX_THINGS, math.ceil(MAX_THINGS * room)))
    colors, shapes = rng.permutation(len(COLORS)), rng.permutation(len(SHAPES))
    things: list[Thing] = []
    for index in range(int(rng.integers(2, most + 1))):
        spot = find_busy_spot(rng, things, width, height, scale)
        if spot is None:
            continue
        x, y, radius = spot
        color = int(colors[index] if rng.random() < 0.65 else rng.integers(len(COLORS)))
        shape = int(shapes[index] if rng.random() < 0.65 else rng.integers(len(SHAPES)))
        readable = radius >= READABLE * scale and rng.random() < 0.75
        digit = int(rng.integers(10)) if readable else -1
        tone = int(rng.choice(len(TONES), p=(0.4, 0.3, 0.3)))
        things.append(Thing(shape, color, digit, x, y, radius, tone))
    return tuple(things)


def find_busy_spot(
    rng: Rng, things: list[Thing], width: int, height: int, scale: float
) -> tuple[float, float, float] | None:
    """A (x, y, radius) with room, or None after 60 attempts."""
    for _ in range(60):
        radius = rng.uniform(SMALLEST, LARGEST) * scale
        margin = radius * 1.15 + scale
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if abs(x - width / 2) < 5 * scale or abs(y - height / 2) < 5 * scale:
            continue
        near = rng.uniform(OVERLAP, 1.3)
        if all(math.hypot(x - t.x, y - t.y) > (radius + t.radius) * near for t in things):
            return float(x), float(y), float(radius)
    return None
