"""A search's trials with selectors, exits and the question: exactly what ``apply`` gives."""

import copy

import pytest
import torch
from chosen import SCORED, SELECTED, staged
from family_models import each, family
from mutants import RED
from reference import worst
from reference_models import make_batch, tiny
from test_family_trials import TOLERANCE, prompts_of

import prunetune
from prunetune.measure import memos, packing
from prunetune.measure import reference as search_reference
from prunetune.measure.packing import collate, pack, unpack
from prunetune.measure.reference import Recorder
from prunetune.measure.store import MemoryStore
from prunetune.runtime.apply import family_of
from prunetune.runtime.choice import question, selecting
from prunetune.runtime.handle import Handle
from prunetune.runtime.suffix import run_suffix
from prunetune.selectors import Selector

NAMES = ("llava", "llava_next", "internvl", "idefics3")
STATES = ("text_relevance", "feature_distance")
LAYERED = (*STATES, "token_variation", "key_norm")
LATER = {"layer": 5, "retention": 0.1, "selector": {"name": "dpp"}}
EXIT = {"layer": 5, "retention": 0.0}


def recorded(model, seeds=(0, 1, 2)):
    rows = family(model).rows
    batches = [make_batch(model, [row], seed=k) for k, row in zip(seeds, rows)]
    recorder = Recorder(family_of(model), deepest=3)
    return batches, [unpack(*pack(recorder.record(prompts_of(batch)))) for batch in batches]


@torch.no_grad()
def run(model, references, config):
    """Return a trial's last states, and which tokens each stage kept of each row."""
    with Handle(family_of(model), config) as handle:
        first = config.stages[0].layer
        tapped = first - 1 in handle.plan.tapped
        batch = collate(references, first, torch.device("cpu"), answers=False, tapped=tapped)
        got = run_suffix(handle, batch.prefix, tail=1)
        return got, handle.trace[-1]


@torch.no_grad()
def equals_apply(name, layer, *later, selector=None, scorers=None):
    model = tiny(name)
    batches, references = recorded(model)
    named = tuple({"name": n} for n in scorers or ()) or SCORED
    config = staged(
        model, {"layer": layer, "retention": 0.3, "scorers": named, "selector": selector}, *later
    )
    got, trace = run(model, references, config)
    with prunetune.apply(model, config) as handle:
        for row, batch in enumerate(batches):
            expected = model.model(**batch.inputs).last_hidden_state[:, -1:]
            assert worst(got[row], expected[0]) < TOLERANCE
            gone = int((~batch.valid).sum())
            for own, other in zip(trace.stages, handle.trace[-1].stages, strict=True):
                shift = trace.image_slots[row][0] - handle.trace[-1].image_slots[0][0]
                assert torch.equal(own.kept[row] - shift, other.kept[0]), (row, own.layer, gone)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", SELECTED)
def test_every_selector(kind, layer):
    """On both families in turn, so that each selector meets both, and both layers."""
    name = ("llava", "llava_next")[(list(SELECTED).index(kind) + layer // 2) % 2]
    equals_apply(name, layer, LATER, selector=SELECTED[kind])


@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("name", each(*NAMES))
def test_every_new_scorer_and_an_exit(name, layer):
    """A first stage at layer 4 is behind the last states that are kept."""
    scorers = LAYERED if layer else STATES
    equals_apply(name, layer, EXIT, scorers=scorers, selector=SELECTED["cover, asked"])


def question_forgotten(patch):
    def empty(family, images, ids, *rest):
        for image in images:
            image.question = question.embedded(family, ids[:0])

    patch.setattr(search_reference, "note_prompt", empty)


def question_not_kept(patch):
    patch.setattr(packing, "_OPTIONAL", packing._OPTIONAL[:-1])


@pytest.mark.parametrize("bug", [question_forgotten, question_not_kept])
def test_red_with_a_bug(bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(RED):
        equals_apply("llava", 0, scorers=("text_relevance",))


# -- what is not computed again --------------------------------------------------------------------


def counting(monkeypatch):
    """Return a list that grows by the name of a selector at every selection."""
    made, right = [], Selector.order

    def order(self, ctx, count):
        made.append(self.name)
        return right(self, ctx, count)

    monkeypatch.setattr(Selector, "order", order)
    return made


def kept_references(model, limit=None):
    _, references = recorded(model)
    store = MemoryStore()
    if limit is not None:
        store._memos = memos.Memos(limit)
    for index, reference in enumerate(references):
        store.put(index, reference)
    return [store.get(index) for index in range(len(references))]


def trials(model):
    """Return configs of a search whose settings lie on levels: 2 counts, 2 settings, 3 rounds."""
    return [
        staged(
            model,
            {"layer": 0, "retention": share, "scorers": ({"name": "coverage", "weight": weight},),
             "selector": {"name": "cover", "tau": tau}},
        )
        for weight in (0.3, 0.5, 0.9)
        for tau in (0.4, 0.8)
        for share in (0.5, 0.2)
    ]  # fmt: skip


def test_selections_are_found_again(monkeypatch):
    """Nested orders and cosines: once an image and setting, whatever scores and counts are."""
    model = tiny("llava")
    references = kept_references(model)
    images = sum(len(reference.images) for reference in references)
    plain = [run(model, recorded(model)[1], config)[1] for config in trials(model)]
    made = counting(monkeypatch)
    cosines = []
    right = prunetune.selectors.base.cosines
    monkeypatch.setattr(
        "prunetune.selectors.base.cosines", lambda *a: cosines.append(1) or right(*a)
    )
    found = [run(model, references, config)[1] for config in trials(model)]
    for one, two in zip(plain, found, strict=True):
        for a, b in zip(one.stages[0].kept, two.stages[0].kept, strict=True):
            assert torch.equal(a, b)
    assert len(trials(model)) == 12
    # Hit rate: 10 of 12 selections; of 2 matrices 1.
    assert len(made) == 2 * images
    assert len(cosines) == images


def test_other_scores_are_another_selection(monkeypatch):
    model = tiny("llava")
    references = kept_references(model)
    made = counting(monkeypatch)
    for sign in (1.0, -1.0, 1.0):
        scorer = {"name": "random", "weight": sign}
        stage = {"layer": 0, "retention": 0.3, "scorers": (scorer,)}
        run(model, references, staged(model, stage | {"selector": {"name": "dpp"}}))
    assert len(made) == 2 * sum(len(reference.images) for reference in references)


@pytest.mark.parametrize("limit", [0, 3000, 20_000])
def test_memory_is_bounded(limit):
    """And what does not fit is computed again."""
    model = tiny("llava")
    bounded = kept_references(model, limit)
    for config in trials(model):
        free = run(model, kept_references(model), config)[0]
        assert torch.equal(run(model, bounded, config)[0], free)
    held = [t.nbytes for r in bounded for i in r.images for t in i.memo.values()]
    assert sum(held) <= limit


def test_orders_of_one_image_are_bounded():
    model = tiny("llava")
    references = kept_references(model)
    for k in range(3 * selecting.ORDERS):
        scorers = ({"name": "random"}, {"name": "coverage", "weight": (k + 1) / 100})
        stage = {"layer": 0, "retention": 0.3, "scorers": scorers, "selector": {"name": "mmr"}}
        run(model, references, staged(model, stage))
    for reference in references:
        for image in reference.images:
            orders = [key for key in image.memo if key.startswith("order:")]
            assert len(orders) == selecting.ORDERS


def test_what_was_given_back_can_be_taken_again():
    shared = memos.Memos(limit=1000)
    memo = shared.of(0, 0)
    for _ in range(10):
        memo["a"] = torch.zeros(200)
        memo["a"] = torch.zeros(240)
        del memo["a"]
    memo["b"] = torch.zeros(250)
    memo["c"] = torch.zeros(1)
    assert list(memo) == ["b"]
    assert copy.copy(memo["b"]).nbytes == 1000
