"""The rows of a pruned cache reordered, selected and repeated between two forwards."""

import copy

import pytest
import torch
from reference import worst
from reference_models import IMAGE, make_batch, make_config, tiny
from transformers import DynamicCache, StaticCache

import prunetune

MOVES = {
    "reorder_cache": (torch.tensor([2, 0, 1]), [2, 0, 1]),
    "batch_select_indices": (torch.tensor([2, 1]), [2, 1]),
    "batch_repeat_interleave": (2, [0, 0, 1, 1, 2, 2]),
}
SCHEDULES = [("2+4", "original"), ("0", "original"), ("0", "packed")]


def moved(schedule, positions, kind, moves):
    """Return logits after the moves, and those of the rows they leave, of the cache as it was."""
    model = tiny("llava")
    text = model.config.get_text_config()
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(text, max_cache_len=200)
    batch, config = make_batch(model), make_config(model, schedule, positions=positions)
    more = torch.randint(2, IMAGE, (3, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 4), value=1)
    with prunetune.apply(model, config):
        model(**batch.inputs, use_cache=True, past_key_values=cache)
        still = copy.deepcopy(cache)
        rows = torch.arange(3)
        for method in moves:
            argument, order = MOVES[method]
            getattr(cache, method)(argument)
            rows = rows[order]
        expected, logits = (
            torch.cat(
                [
                    model(
                        input_ids=more[r, part], attention_mask=mask[r, :end], past_key_values=one
                    ).logits
                    for part, end in ((slice(0, 3), -1), (slice(3, 4), None))
                ],
                1,
            )
            for one, r in ((still, slice(None)), (cache, rows))
        )
    return logits, expected[rows]


@pytest.mark.parametrize(
    ("kind", "moves"),
    [
        ("dynamic", ["reorder_cache"]),
        ("static", ["reorder_cache"]),
        ("dynamic", ["batch_select_indices"]),
        ("dynamic", ["batch_repeat_interleave"]),
        ("dynamic", ["reorder_cache", "batch_repeat_interleave"]),
        ("dynamic", ["reorder_cache", "reorder_cache", "batch_select_indices"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
@pytest.mark.parametrize(("schedule", "positions"), SCHEDULES)
@torch.no_grad()
def test_moved_rows_go_on_as_they_were(schedule, positions, kind, moves):
    logits, expected = moved(schedule, positions, kind, moves)
    assert worst(logits, expected) < 1e-5


@torch.no_grad()
def test_a_state_that_stays_behind_would_be_noticed(monkeypatch):
    monkeypatch.setattr("prunetune.runtime.leave.follow_rows", lambda cache, state: None)
    logits, expected = moved("2+4", "original", "dynamic", ["reorder_cache"])
    assert worst(logits, expected) > 0.1
