"""Qwen-VL: DeepStack behind the first layers, and what a search starts from."""

import threading
from contextlib import nullcontext

import pytest
import test_families
import test_runtime
import torch
from family_models import each, family
from reference import measure, worst
from reference_models import make_batch, make_config, tiny
from test_families_qwen import IMAGES, QWEN, view

import prunetune
from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.families import FAMILIES as TABLE
from prunetune.families.bases.deepstack import METHOD
from prunetune.measure.packing import collate, pack, unpack
from prunetune.measure.prompts import Prompts
from prunetune.measure.reference import Recorder
from prunetune.runtime import frame
from prunetune.runtime.handle import Handle
from prunetune.runtime.suffix import run_suffix
from prunetune.runtime.vision.tower import VisionTap

TOLERANCE = test_runtime.TOLERANCE
VIDEO = (2, (4, 16, 24), 4)
DEEP = {
    "0": [(0, 0.5, ("random",))],
    "1": [(1, 0.5, ("random",))],
    "2": [(2, 0.5, ("last_query",))],
    "3": [(3, 0.5, ("random",))],
    "0+1+2+3": [
        (0, 0.8, ("random",)), (1, 0.6, ("coverage",)), (2, 0.4, ("topv",)), (3, 0.2, ("random",)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("stages", DEEP)
def test_deepstack_follows_the_tokens_that_are_left(stages):
    model = tiny("qwen3_vl")
    batch, config = make_batch(model), make_config(model, DEEP[stages])
    test_runtime.check(measure(model, config, batch, steps=4), batch, config)


@torch.no_grad()
def test_deepstack_counts_for_the_result():
    """Each of its features moves the logits: a lost one would be noticed."""
    model = tiny("qwen3_vl")
    batch, text = make_batch(model), model.model.language_model
    before, process = model(**batch.inputs).logits, text._deepstack_process
    for lost in range(3):
        calls = iter(range(3))
        text.__dict__[METHOD] = lambda hidden, *rest, calls=calls, lost=lost: (
            hidden if next(calls) == lost else process(hidden, *rest)
        )
        assert worst(model(**batch.inputs).logits[:, -1], before[:, -1]) > 0.02


def test_somebody_elses_override_comes_back():
    model = tiny("qwen3_vl")
    text = model.model.language_model
    text.__dict__[METHOD] = mine = lambda hidden, *rest: hidden
    with prunetune.apply(model, make_config(model, "0+1+3")):
        assert text.__dict__[METHOD] is not mine
    assert text.__dict__.pop(METHOD) is mine


@pytest.mark.parametrize("first", [0, 1, 2, 4])
@pytest.mark.parametrize("name", each(*QWEN))
@torch.no_grad()
def test_a_trial_gives_what_the_pruned_model_gives(name, first):
    """From stored states on, through the disk's format, against a whole pruned forward."""
    model = tiny(name)
    batches = [make_batch(model, [row], seed=k) for k, row in enumerate(IMAGES)]
    references = [unpack(*pack(recorded(model, batch))) for batch in batches]
    scorer = "random" if first == 0 else "last_query"
    config = make_config(model, [(first, 0.3, (scorer, "cls_attention")), (5, 0.1, ())])
    with Handle(view(model), config) as handle:
        tapped = first - 1 in handle.plan.tapped
        batch = collate(references, first, torch.device("cpu"), answers=False, tapped=tapped)
        got = run_suffix(handle, batch.prefix, tail=1)

    def last(batch):
        return model.model(**batch.inputs).last_hidden_state[:, -1:]

    with prunetune.apply(model, config):
        expected = torch.cat([last(batch) for batch in batches])
    assert worst(got, expected) < TOLERANCE
    plain = torch.cat([last(batch) for batch in batches])
    assert worst(torch.stack([r.tail for r in references]), plain) < TOLERANCE
    assert worst(got, plain) > 0.02


def recorded(model, batch):
    inputs = dict(batch.inputs)
    ids, _ = inputs.pop("input_ids"), inputs.pop("attention_mask")
    query = torch.tensor([ids.shape[1] - 1])
    prompts = Prompts(ids, batch.valid, query, [None], inputs)
    return Recorder(view(model), deepest=3).record(prompts)


@pytest.mark.parametrize("name", each(*QWEN))
def test_packed_is_refused_also_where_the_config_leaves_the_sections_to_the_default(name):
    model = tiny(name)
    config = make_config(model, [(0, 0.5, ("random",))], positions="packed")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"\A[^\n]*'packed'[^\n]*rows and columns[^\n]*\Z"):
            prunetune.apply(model, config)
        model.config.text_config.rope_parameters.pop("mrope_section", None)


@pytest.mark.parametrize("name", each(*QWEN))
@torch.no_grad()
def test_prompt_lookup_and_threads(name):
    """Candidates are checked at rotary triples; DeepStack of one thread is not another's.

    Threads alone, where transformers takes no candidates.
    """
    model = tiny(name)
    lookup = {"prompt_lookup_num_tokens": 2} if family(name).lookup is True else {}
    batches = [make_batch(model, [row], seed=k) for k, row in enumerate((*IMAGES[:2], VIDEO))]
    options, got = {"max_new_tokens": 8, "do_sample": False}, {}
    with prunetune.apply(model, make_config(model, "0+1+3")):
        greedy = [model.generate(**batch.inputs, **options) for batch in batches]
        start = threading.Barrier(len(batches))

        def work(i):
            start.wait()
            with torch.no_grad():
                got[i] = model.generate(**batches[i].inputs, **options, **lookup)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[i].tolist() for i in range(len(batches))] == [g.tolist() for g in greedy]


# -- planted bugs --------------------------------------------------------------------------------


def rotary_rows_of_the_first_slots(patch):
    def first(parts, index):
        if index is None:
            return parts
        return tuple(p.expand(len(index), -1, -1)[:, : index.shape[1]] for p in parts)

    patch.setattr(frame, "rows_of", first)


def followed_by(patch, choose):
    """Let DeepStack's mask and features at the slots left be ``choose(visual, features, left)``."""

    def follow(self, survivors):
        text, process = self.text_model, self.text_model._deepstack_process

        def wrong(hidden, visual, features):
            left = survivors()
            if left is not None:
                visual, features = choose(visual, features, *left)
            return process(hidden, visual, features)

        text.__dict__[METHOD] = wrong
        return lambda: text.__dict__.pop(METHOD)

    patch.setattr(TABLE.get("qwen3_vl"), "follow", follow)


def features_of_the_first_tokens(patch):
    def choose(visual, features, index, valid):
        visual = visual.gather(1, index) & valid
        return visual, features[: int(visual.sum())]

    followed_by(patch, choose)


def features_of_the_tokens_before(patch):
    def choose(visual, features, index, valid):
        number = visual.flatten().cumsum(0).view_as(visual) - 2
        visual = visual.gather(1, index) & valid
        return visual, features[number.gather(1, index)[visual]]

    followed_by(patch, choose)


def videos_encoded_as_images_count_as_images(patch):
    patch.setattr(VisionTap, "encoding", lambda self: nullcontext(True))


def deepstack_lost_in_the_search(patch):
    patch.setattr(TABLE.get("qwen3_vl"), "injected", lambda self, arguments: [])


def plain_positions_in_the_search(patch):
    patch.setattr(TABLE.get("qwen3_vl"), "multimodal_positions", False)


def masking():
    for name in ("qwen2_vl", "qwen3_vl"):
        test_families.test_equals_masking(name, "0+1+3", "sdpa")


def deepstack():
    test_deepstack_follows_the_tokens_that_are_left("1")


def trial():
    test_a_trial_gives_what_the_pruned_model_gives("qwen3_vl", 1)


BUGS = (
    (rotary_rows_of_the_first_slots, masking),
    (videos_encoded_as_images_count_as_images, masking),
    (features_of_the_first_tokens, deepstack),
    (features_of_the_tokens_before, deepstack),
    (deepstack_lost_in_the_search, trial),
    (plain_positions_in_the_search, trial),
)


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_a_planted_bug_turns_a_test_red(bug, check, monkeypatch):
    bug(monkeypatch)
    with pytest.raises((AssertionError, UnsupportedModelError)):
        check()
