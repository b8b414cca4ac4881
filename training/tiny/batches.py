"""Turns generated pictures into training batches, with questions packed behind each image."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.tiny.kinds import KINDS
from training.tiny.model import vocabulary
from training.tiny.painting import Rng
from training.tiny.pictures import Picture, load_digit_bank
from training.tiny.questions import ALL_TYPES, Question
from training.tiny.views import GRID, UNKNOWN, Layout, labels, views

TEXT_TOKENS = 160
ONE_THING = ("color", "shape", "digit", "by_digit", "name")  # all of the answer is about it
PREFIX = ("<s>", "USER:")
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# (width, height), all with a side of 128, so that any-resolution pads but never rescales
SIZES = ((128, 128), (128, 64), (64, 128), (128, 96), (96, 128), (128, 112), (80, 128))
SIZE_SHARES = (0.64, 0.07, 0.07, 0.07, 0.07, 0.04, 0.04)


@dataclass(frozen=True)
class Packed:
    """Independent questions in one row of text; every field starts with (TEXT_TOKENS,).

    Attributes:
        place: centre of the thing that a word settles on, as shares of the picture, else nan.
        apart: where a relation has named two things, from the first's centre to the second's.
        meant: color, tone, shape and digit of the thing that a word speaks of, else -100.
        about: pattern, color and tone of the background where it is asked about, else -100.
    """

    ids: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    types: np.ndarray
    place: np.ndarray
    apart: np.ndarray
    meant: np.ndarray
    about: np.ndarray


@functools.cache
def word_ids() -> dict[str, int]:
    return vocabulary()


def empty_row(start: int) -> Packed:
    """A row without questions; every token is its own segment."""
    n = TEXT_TOKENS
    return Packed(
        ids=np.zeros(n, np.int64),
        targets=np.full(n, -100, np.int64),
        weights=np.zeros(n, np.float32),
        positions=np.full(n, start, np.int64),
        segments=10_000 + np.arange(n),
        types=np.full(n, -1, np.int64),
        place=np.full((n, 2), np.nan, np.float32),
        apart=np.full((n, 2), np.nan, np.float32),
        meant=np.full((n, 4), UNKNOWN, np.int64),
        about=np.full((n, 3), UNKNOWN, np.int64),
    )


def pack(picture: Picture, kind: str, rng: Rng, shares: np.ndarray, start: int) -> Packed:
    """Fills a row with questions of random types; each is a segment that starts at `start`."""
    n, row, types = TEXT_TOKENS, empty_row(start), KINDS[kind].types
    asker, asked, at = KINDS[kind].asker(picture, rng), set(), 0
    for number in range(60):
        question = asker.ask(types[int(rng.choice(len(types), p=shares))])
        if question is None or question.words in asked:
            continue
        length = len(question.words) + 1 + len(question.answer)
        if at + length > n:
            if n - at < 8:
                break
            continue
        asked.add(question.words)
        write(row, at, number, question, picture, start)
        at += length
    return row


def write(row: Packed, at: int, number: int, q: Question, picture: Picture, start: int) -> None:
    """Writes one question with its answer into a row, in place."""
    ids = word_ids()
    words = [*q.words, "ASSISTANT:", *q.answer]
    end, answer = at + len(words), at + len(q.words)
    row.ids[at:end] = [ids[w] for w in words]
    row.targets[answer:end] = [*(ids[w] for w in q.answer), ids["</s>"]]
    # the end is as informative as a word only where the number of words varies
    varies = q.type == "list" or picture.ground is not None
    row.weights[answer:end] = [0.6] * len(q.answer) + [0.4] if varies else [1.0, 0.05]
    row.positions[at:end] = start + np.arange(len(words))
    row.segments[at:end] = number
    row.types[answer : end - 1] = ALL_TYPES.index(q.type)
    for word, thing in q.marks:
        t = picture.things[thing]
        row.place[at + word] = t.x / picture.width, t.y / picture.height
        # a list's words are marked themselves: what comes next is settled one word before
        first = at + word - (q.type == "list")
        last = end - 1 if q.type in ONE_THING else first
        digit = t.digit if t.digit >= 0 else UNKNOWN
        row.meant[first : last + 1] = t.color, t.tone, t.shape, digit
    if q.type == "background" and picture.ground is not None:
        known = picture.ground
        row.about[answer - 1 : end] = known.pattern, known.color, known.tone
    if q.type == "relation":
        (first, _), (second, _) = q.marks
        row.apart[at + second : answer + 1] = row.place[at + second] - row.place[at + first]


@dataclass(frozen=True)
class Batch:
    """Tensors of one step, all pictures of one size.

    Attributes:
        pixels: (pictures, views, 3, 64, 64).
        order: Layout.order, (all visual tokens,).
        kept: (pictures, kept visual tokens) ascending indices into order.
    """

    pixels: Tensor
    order: Tensor
    kept: Tensor
    labels: dict[str, Tensor]
    text: dict[str, Tensor]


def choose(rng: Rng, on: np.ndarray, keep: int) -> np.ndarray:
    """The thumbnail's tokens and a random choice of the others, those on objects first.

    Args:
        on: (visual tokens,) whether a token shows an object.
        keep: how many to keep; 0 for all.
    """
    if not keep or keep >= len(on):
        return np.arange(len(on))
    score = on + 0.9 * rng.random(len(on))
    score[: GRID * GRID] = 2
    return np.sort(np.argsort(-score)[:keep])


def make_batch(
    seed: list[int],
    size: tuple[int, int],
    kinds: list[str],
    shares: dict[str, np.ndarray],
    keep: int = 0,
) -> Batch:
    """Draws a picture of each kind with questions; the same seed gives the same batch.

    Args:
        shares: of each kind's types of questions, adding up to 1.
    """
    rng, bank, layout = np.random.default_rng(seed), load_digit_bank("train"), Layout(*size)
    order = layout.order()
    start = len(PREFIX) + len(order)
    drawn, pictures = [KINDS[kind].draw(rng, bank, *size) for kind in kinds], len(kinds)
    pixels = np.stack([views(p, layout) for p in drawn]).astype(np.float32) / 255
    gain = rng.uniform(0.85, 1.15, (pictures, 1, 1, 1, 1)).astype(np.float32)
    shift = rng.uniform(-0.06, 0.06, (pictures, 1, 1, 1, 1)).astype(np.float32)
    pixels = (np.clip(pixels * gain + shift, 0, 1) - MEAN) / STD
    tensors = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 1, 4, 2, 3)))
    marked = [labels(p, layout) for p in drawn]
    packed = [pack(p, kind, rng, shares[kind], start) for p, kind in zip(drawn, kinds, strict=True)]
    kept = [choose(rng, np.append(m.shape.ravel() > 0, False)[order], keep) for m in marked]
    return Batch(
        tensors,
        torch.from_numpy(order),
        torch.from_numpy(np.stack(kept)),
        stack(marked),
        stack(packed),
    )


def stack(parts: list) -> dict[str, Tensor]:
    """Dataclasses of arrays -> one tensor a field, with a first dimension for the parts."""
    return {
        name: torch.from_numpy(np.stack([getattr(part, name) for part in parts]))
        for name in vars(parts[0])
    }
