"""Questions about one picture in one row: the same numbers as each by itself."""

import pytest
import torch
from family_models import each, family
from family_models._base import Piece
from reference import worst
from reference_models import make_config, tiny

from prunetune.measure import continued, sharing
from prunetune.measure.continued import ContinuingRecorder
from prunetune.measure.packing import collate, pack, unpack
from prunetune.measure.prompts import Prompts
from prunetune.measure.reference import Recorder
from prunetune.measure.sharing import collate_rows
from prunetune.runtime.apply import family_of
from prunetune.runtime.handle import Handle
from prunetune.runtime.suffix import run_suffix

TOLERANCE = 1e-5
CPU = torch.device("cpu")
NAMES = ("idefics3", "internvl", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl")
SCHEDULES = {
    "0": ((0, 0.4, ("random", "coverage")),),
    "0+1+3": ((0, 0.7, ("random",)), (1, 0.45, ("topv",)), (3, 0.3, ("coverage",))),
    "2+4": ((2, 0.5, ("topv", "random")), (4, 0.2, ())),
    "behind": ((4, 0.3, ("random",)),),
}


def asked(name, lengths, pictures=1, seed=0):
    """Return a model and prompts of ``lengths`` tokens behind the same pictures."""
    model, made = tiny(name), family(name)
    draw = torch.Generator().manual_seed(7 + seed)

    def text(count):
        return Piece(torch.randint(2, 99, (count,), generator=draw).tolist())

    # A picture that comes twice is there twice.
    front = [text(3)]
    for _ in range(pictures):
        front += [made.piece(model, made.image, 50 + seed), text(2)]
    prompts = []
    for length in lengths:
        inputs = dict(made.assemble(model, [[*front, text(length)]]).inputs)
        ids, valid = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
        # As if the last two tokens were the expected answer.
        query = torch.tensor([ids.shape[1] - 3])
        prompts.append(Prompts(ids, valid, query, [ids[0, -2:].tolist()], inputs))
    return model, prompts


@torch.no_grad()
def recorded(model, prompts, kind=ContinuingRecorder):
    recorder = kind(family_of(model), deepest=3)
    last = len(prompts) - 1
    return [recorder.record(one, more=k < last) for k, one in enumerate(prompts)]


def tensors_of(references):
    return [pack(reference)[0] for reference in references]


def apart(one, other):
    """Return how far two packed references are from each other."""
    assert one.keys() == other.keys()
    return max(worst(one[k].double(), other[k].double()) for k in one if one[k].numel())


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("name", each(*NAMES, "gemma3", "paligemma"))
def test_a_reference_that_goes_on_from_anothers_pictures(name, pictures):
    model, prompts = asked(name, (5, 9, 4), pictures)
    once = recorded(model, prompts)
    alone = [recorded(model, [one], Recorder)[0] for one in prompts]
    assert max(map(apart, tensors_of(once), tensors_of(alone))) < TOLERANCE
    assert [r.query for r in once] == [r.query for r in alone]
    fits = name not in ("gemma3", "paligemma")
    assert [bool(r.prefix) for r in once] == [fits] * 3
    assert len({r.prefix for r in once}) == 1


def test_what_differs_in_a_token_or_a_pixel_is_not_gone_on_from():
    model, prompts = asked("llava_next", (5, 5))
    first, second = prompts
    second.input_ids[0, 1] += 1
    assert len({r.prefix for r in recorded(model, prompts)}) == 2
    second.input_ids[0, 1] -= 1
    second.pixels = {**first.pixels, "pixel_values": first.pixels["pixel_values"].clone()}
    assert len({r.prefix for r in recorded(model, prompts)}) == 1
    second.pixels["pixel_values"].flatten()[3] += 1e-3
    assert len({r.prefix for r in recorded(model, prompts)}) == 2


def test_prompts_that_end_with_their_picture_share_nothing():
    model, prompts = asked("llava", (0, 0))
    for prompt in prompts:
        prompt.query -= 2
    assert [r.prefix for r in recorded(model, prompts)] == ["", ""]


@torch.no_grad()
def trial(name, schedule="2+4", pictures=1, *, answers=True, positions="original"):
    """Return how far a shared trial of unequal groups is from an unshared one."""
    model, prompts = asked(name, (5, 9, 4), pictures)
    groups = [prompts, asked(name, (6,), 1, seed=3)[1], asked(name, (4, 12), pictures, seed=4)[1]]
    rows = [[unpack(*pack(r)) for r in recorded(model, group)] for group in groups]
    config = make_config(model, SCHEDULES[schedule], positions=positions)
    assert not config.prompt_dependent
    first = config.stages[0].layer
    tail = 3 if answers else 1
    with Handle(family_of(model), config) as handle:
        given = {"answers": answers, "tapped": first - 1 in handle.plan.tapped}
        shared = sharing.collate_rows(rows, first, CPU, **given)
        got = run_suffix(handle, shared.prefix, tail)
        flat = [reference for row in rows for reference in row]
        alone = collate(flat, first, CPU, **given)
        expected = run_suffix(handle, alone.prefix, tail)
        plain = torch.stack([r.tail[:tail] for r in flat])
    assert shared.answers == alone.answers
    assert len(shared.prefix.hidden) == 3
    assert worst(expected, plain) > 0.02
    return worst(got, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", each(*NAMES))
def test_a_shared_trial_gives_what_separate_ones_give(name, schedule):
    assert trial(name, schedule) < TOLERANCE


@pytest.mark.parametrize("name", each("internvl", "llava_next", "qwen2_5_vl"))
def test_a_picture_that_comes_twice(name):
    assert trial(name, "0+1+3", 2) < TOLERANCE
    assert trial(name, "2+4", 2, answers=False) < TOLERANCE


def test_positions_without_gaps():
    assert trial("llava_next", "0", positions="packed") < TOLERANCE


# -- planted bugs ------------------------------------------------------------------------------


def questions_see_each_other(patch):
    real = sharing._branches

    def seen(labels, *rest):
        branches = real(labels, *rest)
        real_ones = (labels >= 0)[:, :, None] & (labels >= 0)[:, None]
        branches.mask = real_ones.tril()[:, None]
        return branches

    patch.setattr(sharing, "_branches", seen)


def positions_not_restarted(patch):
    real = collate_rows

    def counted(rows, *given, **options):
        batch = real(rows, *given, **options)
        for part in batch.prefix.embeddings[""]:
            longest = max(rows[0], key=lambda r: len(r.image_mask))
            own = longest.embeddings[""][0 if part is batch.prefix.embeddings[""][0] else 1]
            part[0, -len(own) :] = own
        return batch

    patch.setattr(sharing, "collate_rows", counted)


def last_slots_off_by_one(patch):
    real = sharing._branches

    def off(*given):
        branches = real(*given)
        branches.behind = (branches.behind - 1).clamp_min(0)
        return branches

    patch.setattr(sharing, "_branches", off)


def everything_in_the_first_row(patch):
    real = sharing._branches

    def first(*given):
        branches = real(*given)
        branches.row = torch.zeros_like(branches.row)
        return branches

    patch.setattr(sharing, "_branches", first)


BUGS = (
    questions_see_each_other,
    positions_not_restarted,
    last_slots_off_by_one,
    everything_in_the_first_row,
)


@pytest.mark.parametrize("schedule", ["0+1+3", "behind"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_shared_trial_is_red_with_a_bug(bug, schedule, monkeypatch):
    bug(monkeypatch)
    assert trial("llava_next", schedule) > 100 * TOLERANCE


def test_a_reference_is_red_if_a_cache_keeps_a_question(monkeypatch):
    model, prompts = asked("llava_next", (5, 9, 4))
    alone = [recorded(model, [one], Recorder)[0] for one in prompts]
    real = continued.ContinuingRecorder._go_on

    def late(self, given, begun):
        begun.tokens += 1
        return real(self, given, begun)

    monkeypatch.setattr(continued.ContinuingRecorder, "_go_on", late)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        assert max(map(apart, tensors_of(recorded(model, prompts)), tensors_of(alone))) < TOLERANCE
