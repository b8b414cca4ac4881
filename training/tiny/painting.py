"""The pen of the picture generator: backgrounds, shapes and digits."""

import colorsys
import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan")
HSV = {
    "red": (0.0, 0.9, 0.85),
    "green": (0.33, 0.85, 0.65),
    "blue": (0.62, 0.85, 0.85),
    "yellow": (0.155, 0.9, 0.95),
    "purple": (0.80, 0.7, 0.6),
    "orange": (0.075, 0.95, 0.95),
    "cyan": (0.5, 0.8, 0.9),
}
TONES = ("", "light", "dark")  # the first is the color as it stands in HSV
PATTERNS = ("stripes", "checks", "dots", "waves", "bricks", "rings")
GROUND_COLORS = (*COLORS, "gray")
DRAWING_SCALE = 3  # shapes are drawn larger and averaged down, for smooth edges

Rng = np.random.Generator
DigitBank = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Thing:
    """One object: indices into SHAPES and COLORS, digit (-1: none), centre and radius in pixels.

    Attributes:
        tone: index into TONES.
    """

    shape: int
    color: int
    digit: int
    x: float
    y: float
    radius: float
    tone: int = 0


@dataclass(frozen=True)
class Ground:
    """A background that is asked about: indices into PATTERNS, GROUND_COLORS and TONES."""

    pattern: int
    color: int
    tone: int


def toned(hsv: tuple[float, float, float], tone: int) -> tuple[float, float, float]:
    """A lighter or darker neighbour of a color."""
    hue, saturation, value = hsv
    if TONES[tone] == "light":
        return hue, 0.42 * saturation, 0.5 + 0.5 * value
    return (hue, saturation, 0.52 * value) if TONES[tone] == "dark" else hsv


def background(rng: Rng, width: int, height: int) -> np.ndarray:
    """(height, width, 3) float: a pale colour with a texture and sometimes greyish strokes."""
    hue, saturation, value = rng.random(), rng.uniform(0, 0.35), rng.uniform(0.15, 0.9)
    base = np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255
    canvas = base + texture(rng, width, height)
    if rng.random() < 0.6:
        mask = Image.new("L", (width, height))
        pen = ImageDraw.Draw(mask)
        for _ in range(int(rng.integers(1, 5))):
            ends = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(2)]
            pen.line(ends, fill=255, width=int(rng.integers(1, 4)))
        alpha = np.asarray(mask, np.float32)[..., None] / 255 * 0.8
        canvas = canvas * (1 - alpha) + alpha * rng.uniform(20, 235)
    return canvas


def texture(rng: Rng, width: int, height: int) -> np.ndarray:
    """(height, width, 3) float around zero: gradient, soft noise, stripes or checkerboard."""
    longest = max(width, height)
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32) / longest
    kind, strength = int(rng.integers(4)), rng.uniform(15, 45)
    if kind == 0:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = (xx - 0.5) * math.cos(angle) + (yy - 0.5) * math.sin(angle)
        return ramp[..., None] * rng.uniform(-1, 1, 3) * 2 * strength
    if kind == 1:
        cells = int(rng.integers(3, 9))
        noise = rng.normal(0, 1, (cells, cells, 3))
        noise = (0.7 * noise.mean(-1, keepdims=True) + 0.3 * noise).astype(np.float32)
        soft = [
            np.asarray(Image.fromarray(noise[..., c]).resize((width, height), Image.BICUBIC))
            for c in range(3)
        ]
        return np.stack(soft, -1) * strength * 0.8
    if kind == 2:
        angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 12)
        phase = waves * (xx * math.cos(angle) + yy * math.sin(angle))
        stripes = np.sin(2 * math.pi * phase + rng.uniform(0, 6))
        return stripes[..., None] * np.ones(3) * strength * 0.7
    cells = int(rng.integers(4, 12))
    checks = ((np.floor(xx * cells) + np.floor(yy * cells)) % 2) * 2 - 1
    return checks[..., None] * np.ones(3) * strength * 0.5


def outline(shape: str, r: float) -> list[tuple[float, float]]:
    """Corners of a shape around the origin (a circle has none and is drawn as an ellipse)."""
    if shape == "square":
        a = 0.86 * r
        return [(-a, -a), (a, -a), (a, a), (-a, a)]
    if shape == "diamond":
        return [(0, -1.1 * r), (0.8 * r, 0), (0, 1.1 * r), (-0.8 * r, 0)]
    if shape == "triangle":
        return [(0, -1.05 * r), (1.05 * r, 0.8 * r), (-1.05 * r, 0.8 * r)]
    if shape == "star":
        radii = [1.12 * r if i % 2 == 0 else 0.52 * r for i in range(10)]
        turns = [i * math.pi / 5 for i in range(10)]
        return [(q * math.sin(t), -q * math.cos(t)) for q, t in zip(radii, turns, strict=True)]
    a, b = 0.36 * r, 1.05 * r
    upper = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    return [*upper, (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


def shape_alpha(t: Thing) -> tuple[np.ndarray, int, int]:
    """(side, side) float in [0, 1] of an object's area, with its left and top on the canvas."""
    reach = int(t.radius * 1.2) + 2
    left, top, side = int(t.x) - reach, int(t.y) - reach, 2 * reach + 1
    mask = Image.new("L", (side * DRAWING_SCALE, side * DRAWING_SCALE))
    pen = ImageDraw.Draw(mask)
    x, y, r = ((v * DRAWING_SCALE) for v in (t.x - left, t.y - top, t.radius))
    if SHAPES[t.shape] == "circle":
        pen.ellipse([x - r, y - r, x + r, y + r], fill=255)
    else:
        pen.polygon([(x + a, y + b) for a, b in outline(SHAPES[t.shape], r)], fill=255)
    alpha = np.asarray(mask.resize((side, side), Image.BOX), np.float32) / 255
    return alpha, left, top


def jittered_color(rng: Rng, color: int, tone: int = 0) -> np.ndarray:
    """(3,) RGB of a color in 0..255, a little off as paint is."""
    hue, saturation, value = toned(HSV[COLORS[color]], tone)
    jittered = (
        (hue + rng.normal(0, 0.008)) % 1,
        float(np.clip(saturation + rng.normal(0, 0.05), 0, 1)),
        float(np.clip(value + rng.normal(0, 0.06), 0.3, 1)),
    )
    return np.array(colorsys.hsv_to_rgb(*jittered)) * 255


def paint_shape(
    rng: Rng, canvas: np.ndarray, owner: np.ndarray, number: int, t: Thing, strength: float = 1.0
) -> float:
    """Paints an object in place; returns the ink (grey value) that is readable on it.

    Args:
        strength: opacity in (0, 1]; below 1 the background shines through.
    """
    alpha, left, top = shape_alpha(t)
    color = jittered_color(rng, t.color, t.tone)
    alpha, window = clip_to_canvas(alpha, left, top, canvas)
    seen = strength * alpha[..., None]
    canvas[window] = canvas[window] * (1 - seen) + seen * color
    owner[window][alpha > 0.5] = number
    return 10.0 if color @ [0.3, 0.59, 0.11] > 105 else 248.0


def paint_digit(
    rng: Rng,
    canvas: np.ndarray,
    digit_owner: np.ndarray,
    number: int,
    t: Thing,
    bank: DigitBank,
    ink: float,
    scale: float,
) -> None:
    """Writes an object's digit in place, by hand or in a font."""
    side = round(np.clip(t.radius / scale * rng.uniform(1.05, 1.25), 12, 20) * scale)
    alpha = digit_alpha(rng, bank, t.digit, side)
    y = t.y + (0.25 * t.radius if SHAPES[t.shape] == "triangle" else 0)
    left, top = round(t.x - side / 2), round(y - side / 2)
    alpha, window = clip_to_canvas(alpha, left, top, canvas)
    canvas[window] = canvas[window] * (1 - alpha[..., None]) + alpha[..., None] * ink
    digit_owner[window] = number


def digit_alpha(rng: Rng, bank: DigitBank, digit: int, side: int) -> np.ndarray:
    """(side, side) float in [0, 1]: half of the digits handwritten, half printed."""
    if rng.random() < 0.5:
        images, targets = bank
        source = images[rng.choice(np.flatnonzero(targets == digit))]
        large = Image.fromarray(source).resize((side * 2, side * 2), Image.BICUBIC)
    else:
        large = Image.new("L", (2 * side, 2 * side))
        pen = ImageDraw.Draw(large)
        pen.text((side, side), str(digit), fill=255, font=font(int(side * 2.3)), anchor="mm")
    turned = large.rotate(rng.uniform(-10, 10), Image.BILINEAR).resize((side, side), Image.BOX)
    return np.clip(np.asarray(turned, np.float32) / 255 * 1.3, 0, 1)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def clip_to_canvas(
    alpha: np.ndarray, left: int, top: int, canvas: np.ndarray
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Cuts off what lies outside the canvas; returns the rest and its window there."""
    height, width = canvas.shape[:2]
    rows = slice(max(0, top), min(height, top + alpha.shape[0]))
    columns = slice(max(0, left), min(width, left + alpha.shape[1]))
    inner = alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return inner, (rows, columns)
