"""Things that look like objects and are none: fragments, outlines, small print, occluding bars."""

import math

import numpy as np
from PIL import Image, ImageDraw

from training.tiny.painting import (
    COLORS,
    SHAPES,
    TONES,
    Rng,
    Thing,
    clip_to_canvas,
    font,
    jittered_color,
    shape_alpha,
)

MOST_HIDDEN = 0.25  # of an object, by bars and by other objects
PRINT = "0123456789ABCDEFHKLMNPRT"


def somewhere(rng: Rng, canvas: np.ndarray, radius: float) -> Thing:
    """A shape in any color and tone at any place, that is not an object."""
    height, width = canvas.shape[:2]
    return Thing(
        shape=int(rng.integers(len(SHAPES))),
        color=int(rng.integers(len(COLORS))),
        digit=-1,
        x=float(rng.uniform(2, width - 2)),
        y=float(rng.uniform(2, height - 2)),
        radius=radius,
        tone=int(rng.integers(len(TONES))),
    )


def blend(
    canvas: np.ndarray, alpha: np.ndarray, left: int, top: int, color: np.ndarray | float
) -> None:
    """Paints a color through a mask, in place."""
    alpha, window = clip_to_canvas(alpha, left, top, canvas)
    canvas[window] = canvas[window] * (1 - alpha[..., None]) + alpha[..., None] * color


def paint_fragment(rng: Rng, canvas: np.ndarray, scale: float) -> None:
    """A sliver of a shape: what a straight cut leaves of it, a third at most."""
    t = somewhere(rng, canvas, rng.uniform(5, 10) * scale)
    alpha, left, top = shape_alpha(t)
    yy, xx = np.mgrid[0 : alpha.shape[0], 0 : alpha.shape[1]]
    turn = rng.uniform(0, 2 * math.pi)
    along = (xx + left - t.x) * math.cos(turn) + (yy + top - t.y) * math.sin(turn)
    # a cut this far from the centre leaves 20 to 33% of a circle
    kept = np.clip(along - rng.uniform(0.27, 0.5) * t.radius + 0.5, 0, 1)
    blend(
        canvas, (alpha * kept).astype(np.float32), left, top, jittered_color(rng, t.color, t.tone)
    )


def paint_outline(rng: Rng, canvas: np.ndarray, scale: float) -> None:
    """A hollow shape, in a line of 1 to 2 pixels."""
    t = somewhere(rng, canvas, rng.uniform(7, 14) * scale)
    outer, left, top = shape_alpha(t)
    line = rng.uniform(1.2, 2.2) * scale
    inner = Thing(t.shape, t.color, -1, t.x, t.y, t.radius - 1.3 * line)
    small, at_left, at_top = shape_alpha(inner)
    hole = np.zeros_like(outer)
    y, x = at_top - top, at_left - left
    hole[y : y + small.shape[0], x : x + small.shape[1]] = small
    ring = np.clip(outer - hole, 0, 1)
    blend(canvas, ring, left, top, jittered_color(rng, t.color, t.tone))


def paint_print(
    rng: Rng, canvas: np.ndarray, digit_owner: np.ndarray, t: Thing, scale: float
) -> None:
    """Two to four small characters beside an object's digit, not over any digit."""
    size = int(rng.uniform(6, 8) * scale)
    text = "".join(PRINT[int(rng.integers(len(PRINT)))] for _ in range(int(rng.integers(2, 5))))
    box = Image.new("L", (size * 4, size + 3))
    ImageDraw.Draw(box).text((0, 0), text, fill=255, font=font(size))
    alpha = np.asarray(box, np.float32) / 255
    turn, away = rng.uniform(0, 2 * math.pi), t.radius * rng.uniform(0.75, 1.3)
    left = round(t.x + away * math.cos(turn) - size)
    top = round(t.y + away * math.sin(turn) - size / 2)
    inner, window = clip_to_canvas(alpha, left, top, canvas)
    if inner.size and not digit_owner[window][inner > 0.1].any():
        dark = canvas[window].mean() > 115
        blend(canvas, alpha * 0.9, left, top, 20.0 if dark else 240.0)


def paint_bar(
    rng: Rng,
    canvas: np.ndarray,
    owner: np.ndarray,
    digit_owner: np.ndarray,
    areas: np.ndarray,
    scale: float,
) -> None:
    """A bar across the picture and what is there; none where too much of an object would go.

    Args:
        areas: (1 + objects,) pixels of each object with nothing before it.
    """
    height, width = canvas.shape[:2]
    mask = Image.new("L", (width, height))
    ends = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(2)]
    ImageDraw.Draw(mask).line(ends, fill=255, width=max(1, round(rng.uniform(1.5, 4) * scale)))
    on = (np.asarray(mask) > 0) & (digit_owner == 0)
    left = np.bincount(owner[~on], minlength=len(areas))
    colored = rng.random() < 0.5
    color = jittered_color(rng, int(rng.integers(len(COLORS))), int(rng.integers(len(TONES))))
    if (left[1:] < (1 - MOST_HIDDEN) * areas[1:]).any():
        return
    canvas[on] = 0.1 * canvas[on] + 0.9 * (color if colored else rng.uniform(20, 235))
    owner[on] = 0
