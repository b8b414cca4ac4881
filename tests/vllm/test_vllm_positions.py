"""Original positions through vLLM's bookkeeping, against positions counted one by one."""

import pytest
import torch

from prunetune.vllm.layout import Layout, Run
from prunetune.vllm.positions import (
    carried,
    extent_of,
    gapped,
    placed,
    taken,
    thw_of,
    triples,
    ungapped,
)

# Text, a picture of 9 tokens of which these stay, text, another of 6, text.
PARTS = [3, (9, [0, 4, 8]), 2, (6, [2, 3]), 4]


def prompt():
    """Return visual mask, spans (slots, total, alive) and the positions counted one by one."""
    visual, spans, positions, at = [], [], [], 0
    for part in PARTS:
        if isinstance(part, int):
            visual += [False] * part
            positions += range(at, at + part)
            at += part
            continue
        total, alive = part
        slots = torch.arange(len(visual), len(visual) + len(alive))
        spans.append((slots, total, torch.tensor(alive)))
        visual += [True] * len(alive)
        positions += [at + k for k in alive]
        at += total
    return torch.tensor(visual), spans, torch.tensor(positions), at


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_positions_with_gaps_in_any_parts(dtype, chunk):
    visual, spans, wanted, end = prompt()
    pictures = [
        (int(slots[0]), Layout(total, (Run(0, total, len(slots)),))) for slots, total, _ in spans
    ]
    rows, ahead = gapped(len(visual), pictures)
    assert len(visual) + ahead == end
    embeddings = torch.cat([carried(torch.ones(len(a), 4, dtype=dtype), a[:, None])
                            for _, _, a in spans])  # fmt: skip
    slots = visual.nonzero().flatten()
    for start in range(0, len(visual), chunk):
        mine = embeddings[(slots >= start) & (slots < start + chunk)]
        for _ in range(2):  # a request that was put back is computed again
            states, rows = ungapped(visual, [mine] if len(mine) else [], rows, start)
        assert all(part.shape[1] == 4 and bool((part == 1).all()) for part in states)
    assert torch.equal(rows[0], wanted)


def test_places_up_to_the_largest_survive_half_precision():
    places = torch.tensor([[0, 127, 16_383], [128, 129, 16_256]])
    for dtype in (torch.bfloat16, torch.float16):
        states, found = taken(carried(torch.zeros(2, 3, dtype=dtype), places), 3)
        assert torch.equal(found, places)
        assert states.shape == (2, 3)
    # As numbers of one digit they would not.
    assert not torch.equal(places.bfloat16().long(), places)


def test_triples_are_those_of_the_model():
    """A picture of 2 x 3 and a video of 3 frames, 2 positions apart, of 1 x 2."""
    grids = [((1, 2, 3), 1.0), ((3, 1, 2), 2.0)]
    alive = [torch.tensor([1, 5]), torch.tensor([0, 3, 4])]
    # Two text tokens before and between, one behind.
    visual = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 1, 0]).bool()
    spans = [(torch.tensor([2, 3]), extent_of(*grids[0])), (torch.tensor([6, 7, 8]),
                                                           extent_of(*grids[1]))]  # fmt: skip
    rows, ahead = triples(len(visual), spans)
    embeddings = [carried(torch.ones(len(a), 4), thw_of(a, *grid)) for a, grid in zip(alive, grids)]
    for _ in range(2):
        _, rows = placed(visual, embeddings, rows, 0)
    # Behind the first picture (at 2) text goes on at 2 + 3; the video is at 7, its end at 11.
    assert rows.T.tolist() == [
        [0, 0, 0], [1, 1, 1], [2, 2, 3], [2, 3, 4], [5, 5, 5], [6, 6, 6], [7, 7, 7], [9, 7, 8],
        [11, 7, 7], [12, 12, 12],
    ]  # fmt: skip
    assert len(visual) + ahead == 13
