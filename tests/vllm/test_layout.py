"""Where a picture's tokens lie in its part of a prompt; needs no vLLM."""

import pytest
import torch
from engines import config_for
from family_models import family
from hypothesis import given
from hypothesis import strategies as st

from prunetune.errors import UnsupportedModelError
from prunetune.runtime.apply import family_of
from prunetune.selectors import SELECTORS, SelectContext, shares
from prunetune.tokens import Mosaic, grid_geometry
from prunetune.vllm.layout import Layout, Run, as_prompt, layout_of, unpacked
from prunetune.vllm.positions import carried, gapped, ungapped

SELECTOR = {"name": "top", "scope": "view"}
PICTURE, FAKE, BREAK = 7, 1, 2


def split(rows, cols, tokens):
    """Return a picture's part of a prompt: tagged tiles, line breaks, a global view."""
    ids = []
    for row in range(rows):
        for col in range(cols):
            ids += [FAKE, 10 + 8 * row + col, *[PICTURE] * tokens]
        ids.append(BREAK)
    return [*ids, *[BREAK] * bool(ids), FAKE, 9, *[PICTURE] * tokens, FAKE]


def laid(ids, keep=0.2):
    config = config_for("idefics3", 6, retention=keep, selector=SELECTOR)
    visual = torch.tensor(ids) == PICTURE
    idefics = family_of(family("idefics3").model())
    return layout_of(ids, visual, config, lambda: idefics)


@given(
    rows=st.integers(1, 3), cols=st.integers(2, 3), tokens=st.integers(1, 6),
    keep=st.floats(0.02, 1.0),
)  # fmt: skip
def test_each_run_keeps_what_the_selector_gives_its_view(rows, cols, tokens, keep):
    """The runtime's own selection over the same picture, its views in the same places."""
    layout = laid(split(rows, cols, tokens), keep)
    mosaic = Mosaic(rows, cols)
    geometry = mosaic.geometry([grid_geometry(1, tokens) for _ in range(mosaic.views)])
    n = layout.total
    assert n == len(geometry.tile)
    scores = torch.rand(n, generator=torch.Generator().manual_seed(n))
    ctx = SelectContext(torch.ones(n, 2), scores, geometry)
    count = sum(run.kept for run in layout.runs)
    kept = SELECTORS.get("top").model_validate(SELECTOR).keep(ctx, count)
    assert layout.holds(kept)
    # Of other sets, those hold that have as many of each run.
    first = torch.arange(count)
    assert layout.holds(first) == (_counted(first, layout) == [run.kept for run in layout.runs])
    visual = torch.tensor(split(rows, cols, tokens)) == PICTURE
    assert torch.equal(layout.places, visual.nonzero().flatten())
    assert unpacked(layout.packed()) == layout


def _counted(alive, layout):
    counted, at = [], 0
    for run in layout.runs:
        counted.append(int(((alive >= at) & (alive < at + run.size)).sum()))
        at += run.size
    return counted


def test_a_selection_over_the_whole_picture_breaks_the_promise():
    layout = laid(split(1, 2, 4), 0.25)
    assert [run.kept for run in layout.runs] == [1, 1, 1]
    assert layout.holds(torch.tensor([3, 4, 11]))
    assert not layout.holds(torch.tensor([2, 3, 11]))


def test_shares_are_fair_and_whole():
    assert shares([64] * 5, 64) == [13, 13, 13, 13, 12]
    assert shares([10, 30], 4) == [1, 3]
    assert shares([3, 3], 6) == [3, 3]
    assert shares([3, 3, 3], 1) == [1, 0, 0]


def test_runs_that_are_no_views_are_refused():
    ids = [PICTURE, PICTURE, BREAK, PICTURE]
    config = config_for("mistral3", 6, selector=SELECTOR)
    with pytest.raises(UnsupportedModelError, match="several runs"):
        layout_of(ids, torch.tensor(ids) == PICTURE, config, None)
    one = layout_of(ids[:2], torch.tensor([True, True]), config, None)
    assert one.runs == (Run(0, 2, 1),)


def test_two_pictures_where_there_is_one_are_refused():
    view = [FAKE, 9, PICTURE, PICTURE, FAKE]
    with pytest.raises(UnsupportedModelError, match="2 pictures"):
        laid(view + view)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_positions_of_views_with_text_between(chunk):
    """Against positions counted one by one, in whatever parts the prompt is computed."""
    layouts = [Layout(9, (Run(1, 3, 1), Run(5, 3, 0))), Layout(4, (Run(0, 4, 2),))]
    alive = [torch.tensor([2]), torch.tensor([1, 3])]
    # Two tokens of text, the first picture's part, one of text, the second, one of text.
    visual = [0, 0, *[0, 1, 0, 0], 0, *[1, 1], 0]
    wanted = [0, 1, *[2, 5, 6, 10], 11, *[13, 15], 16]
    visual = torch.tensor(visual).bool()
    rows, ahead = gapped(len(visual), [(2, layouts[0]), (7, layouts[1])])
    assert ahead == 7
    parts = [
        carried(torch.ones(len(a), 4), layout.places[a, None]) for a, layout in zip(alive, layouts)
    ]
    embeddings, slots = torch.cat(parts), visual.nonzero().flatten()
    for start in range(0, len(visual), chunk):
        mine = embeddings[(slots >= start) & (slots < start + chunk)]
        _, rows = ungapped(visual, [mine] if len(mine) else [], rows, start)
    assert rows[0].tolist() == wanted
    assert len(visual) + ahead == wanted[-1] + 1


def test_pictures_of_a_call_read_as_one_prompt():
    ids = [torch.tensor(split(1, 2, 2)), torch.tensor(split(0, 0, 2))]
    layouts = [laid(each.tolist()) for each in ids]
    slots, labels = as_prompt(layouts, ids)
    assert torch.equal((labels == PICTURE).nonzero().flatten(), slots)
    apart, _ = as_prompt([Layout(2, (Run(0, 2, 1),))] * 2, [])
    assert apart.tolist() == [0, 1, 3, 4]
