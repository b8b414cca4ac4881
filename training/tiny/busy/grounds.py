"""Backgrounds of strong structure at several scales, each of one pattern, color and tone."""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from training.tiny.painting import GROUND_COLORS, HSV, PATTERNS, TONES, Ground, Rng

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def choose_ground(rng: Rng) -> Ground:
    """A pattern in a light or dark color, gray in one of four."""
    gray = len(GROUND_COLORS) - 1
    color = gray if rng.random() < 0.25 else int(rng.integers(gray))
    return Ground(int(rng.integers(len(PATTERNS))), color, int(rng.integers(1, len(TONES))))


def paint_ground(rng: Rng, ground: Ground, width: int, height: int) -> np.ndarray:
    """(height, width, 3) float: the pattern, another one at a finer scale, and soft noise."""
    scale = max(width, height) / 128
    canvas = np.ones((height, width, 1)) * base_color(rng, ground)
    canvas += pattern(rng, ground.pattern, rng.uniform(11, 30) * scale, width, height) * (
        rng.uniform(22, 45)
    )
    finer = int(rng.integers(len(PATTERNS)))
    canvas += pattern(rng, finer, rng.uniform(3.5, 7) * scale, width, height) * rng.uniform(3, 9)
    cells = rng.normal(0, 1, (int(rng.integers(3, 7)),) * 2).astype(np.float32)
    soft = Image.fromarray(cells).resize((width, height), Image.BICUBIC)
    return canvas + np.asarray(soft)[..., None] * rng.uniform(3, 10)


def base_color(rng: Rng, ground: Ground) -> np.ndarray:
    """(3,) RGB in 0..255: paler or darker than any object of its color."""
    name, light = GROUND_COLORS[ground.color], TONES[ground.tone] == "light"
    hue = rng.random() if name == "gray" else (HSV[name][0] + rng.normal(0, 0.008)) % 1
    least, most = (0.22, 0.36) if light else (0.4, 0.65)
    saturation = rng.uniform(0, 0.04) if name == "gray" else rng.uniform(least, most)
    value = rng.uniform(0.68, 0.85) if light else rng.uniform(0.25, 0.38)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255


def pattern(rng: Rng, index: int, period: float, width: int, height: int) -> np.ndarray:
    """(height, width, 1) float in [-1, 1] with a period in pixels, turned and shifted."""
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    name = PATTERNS[index]
    turn = rng.uniform(0, math.pi) if name in ("stripes", "waves") else rng.uniform(-0.3, 0.3)
    x = (xx * math.cos(turn) + yy * math.sin(turn)) / period + rng.random()
    y = (yy * math.cos(turn) - xx * math.sin(turn)) / period + rng.random()
    if name == "rings":
        x = (xx - rng.uniform(0.2, 0.8) * width) / period
        y = (yy - rng.uniform(0.2, 0.8) * height) / period
    return FIELDS[name](x, y)[..., None]


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.clip(2.5 * np.sin(2 * math.pi * x), -1, 1)


def checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.floor(2 * x) + np.floor(2 * y)) % 2 * 2.0 - 1


def dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    away = np.hypot(x % 1 - 0.5, y % 1 - 0.5)
    return np.clip((0.34 - away) * 12, -1, 1)


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return stripes(x + 0.3 * np.sin(2 * math.pi * y * 0.8), y)


def bricks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.floor(2 * y)
    mortar = np.minimum((2 * y) % 1, (x + 0.5 * (row % 2)) % 1 * 2) < 0.22
    return np.where(mortar, -1.0, 1.0)


def rings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return stripes(np.hypot(x, y), y)


FIELDS: dict[str, Field] = {
    "stripes": stripes,
    "checks": checks,
    "dots": dots,
    "waves": waves,
    "bricks": bricks,
    "rings": rings,
}
