"""Original positions of what is kept, by vLLM's bookkeeping for rows of positions (M-RoPE).

vLLM asks for a prompt's positions before its pictures are encoded, when nobody knows yet which
tokens stay. So each kept token carries its place as further channels of its embedding, which vLLM
hands back before the prefill (the way of EVS, its own video pruning).

Models of plain rotary positions use row 0 alone; row 1 holds where each token's picture (its part
of the prompt) begins, row 2 how far the first generated token is ahead.
Models of triples (Qwen-VL) carry time, row and column.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prunetune.vllm.layout import Layout

SCALE = 128
"""Numbers are carried in two digits of this base, which half precision holds exactly."""


def carried(states: Tensor, places: Tensor) -> Tensor:
    """Return states with their places in further channels, ``[n, d + 2 k]``.

    Args:
        states: ``[n, d]``.
        places: ``[n, k]`` int64 in 0 .. 16,383.
    """
    digits = torch.cat([places // SCALE, places % SCALE], 1)
    return torch.cat([states, digits.to(states)], 1)


def taken(states: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return what ``carried`` was given: states ``[n, d]`` and places ``[n, count]``."""
    digits = states[:, -2 * count :].float().round().long()
    return states[:, : -2 * count], digits[:, :count] * SCALE + digits[:, count:]


def gapped(length: int, pictures: Sequence[tuple[int, Layout]]) -> tuple[Tensor, int]:
    """Return a prompt's positions as known before its pictures are encoded.

    Args:
        length: Tokens of the prompt, pruned.
        pictures: In order, where a picture's part begins in that prompt, and its layout.

    Returns:
        ``[3, length]`` int64, and how far the next token's position is ahead of ``length``.
    """
    positions = torch.zeros(3, length, dtype=torch.long, device="cpu")
    ahead = done = 0
    for begin, layout in pictures:
        left = layout.left
        end = begin + len(left)
        positions[0, done:begin] = torch.arange(done, begin, device="cpu") + ahead
        positions[0, begin:end] = left + begin + ahead
        positions[1, begin:end] = begin + ahead
        ahead += layout.length - len(left)
        done = end
    positions[0, done:] = torch.arange(done, length, device="cpu") + ahead
    positions[2] = ahead
    return positions, ahead


def ungapped(
    visual: Tensor, embeddings: Sequence[Tensor], positions: Tensor, done: int
) -> tuple[list[Tensor], Tensor]:
    """Return embeddings without their places, and the positions that these give.

    Safe to repeat: a request that was put back is computed again.

    Args:
        visual: ``[length]`` bool, True at tokens of pictures.
        embeddings: Of the tokens of pictures from ``done`` on, some of them.
        positions: As from ``gapped``.
        done: Tokens of the prompt computed before.
    """
    positions = positions.clone()
    states, places = _split(embeddings, 1)
    at = _slots(visual, done, len(places))
    positions[0, at] = positions[1, at] + places[:, 0].to(positions.device)
    return states, positions


def triples(
    length: int, pictures: Sequence[tuple[Tensor, tuple[int, int, int]]]
) -> tuple[Tensor, int]:
    """As ``gapped``, for models of triples.

    Args:
        length: Tokens of the prompt, pruned.
        pictures: In order, the slots that a picture's kept tokens take, and how many positions of
            time, row and column it has.
    """
    row = torch.zeros(length, dtype=torch.long, device="cpu")
    at = following = 0
    for slots, extent in pictures:
        first, end = int(slots[0]), int(slots[-1]) + 1
        row[at:first] = torch.arange(first - at, device="cpu") + following
        following += first - at
        row[first:end] = following
        following += max(extent)
        at = end
    row[at:] = torch.arange(length - at, device="cpu") + following
    return row.expand(3, -1).clone(), following + (length - at) - length


def placed(
    visual: Tensor, embeddings: Sequence[Tensor], positions: Tensor, done: int
) -> tuple[list[Tensor], Tensor]:
    """As ``ungapped``, for models of triples.

    A picture begins behind the text before it: these models put a marker there.
    """
    positions = positions.clone()
    states, places = _split(embeddings, 3)
    at = _slots(visual, done, len(places))
    begins = visual.clone()
    begins[1:] &= ~visual[:-1]
    slots = torch.arange(len(visual), device=visual.device)
    first = torch.where(begins, slots, 0).cummax(0).values[at]
    start = torch.where(first > 0, positions[0, first - 1] + 1, 0)
    positions[:, at] = places.T.to(positions.device) + start
    return states, positions


def _split(embeddings: Sequence[Tensor], count: int) -> tuple[list[Tensor], Tensor]:
    parts = [taken(part, count) for part in embeddings]
    empty = torch.zeros(0, count, dtype=torch.long, device="cpu")
    return [states for states, _ in parts], torch.cat([places for _, places in parts] or [empty])


def _slots(visual: Tensor, done: int, count: int) -> Tensor:
    at = visual.nonzero().flatten()
    return at[at >= done][:count]


def thw_of(alive: Tensor, grid: tuple[int, int, int], pace: float) -> Tensor:
    """Return time, row and column of a picture's tokens, ``[k, 3]`` int64.

    Args:
        alive: ``[k]`` int64, which of them.
        grid: Frames, rows and columns of the picture's tokens.
        pace: Positions from one frame to the next.
    """
    _, rows, cols = grid
    time = (alive // (rows * cols) * pace).long()
    return torch.stack([time, alive // cols % rows, alive % cols], 1)


def extent_of(grid: tuple[int, int, int], pace: float) -> tuple[int, int, int]:
    """Return how many positions of time, row and column a picture has."""
    frames, rows, cols = grid
    return int((frames - 1) * pace) + 1, rows, cols


def spans(features: Sequence[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Yield the slots of each picture's tokens in its prompt, and the picture, in order.

    Args:
        features: vLLM's ``MultiModalFeatureSpec``.
    """
    for feature in sorted(features, key=lambda f: int(f.mm_position.offset)):
        where = feature.mm_position
        slots = torch.arange(where.offset, where.offset + where.length, device="cpu")
        if where.is_embed is not None:
            slots = slots[where.is_embed]
        yield slots, feature
