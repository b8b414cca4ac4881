"""Questions about one picture in one row: the same numbers as each by itself."""

import pytest
import torch
from family_models import each, family
from family_models._base import Piece
from reference import worst
from reference_models import make_config, tiny

from prunetune.calibration import CalibrationSet, load_calibration
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.measure import batching, continued, evaluator, sharing
from prunetune.measure.continued import ContinuingRecorder
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.packing import collate, pack, unpack
from prunetune.measure.prompts import Prompts
from prunetune.measure.reference import Recorder
from prunetune.measure.sharing import collate_rows
from prunetune.models import load_model
from prunetune.presets import load_preset
from prunetune.runtime.apply import family_of
from prunetune.runtime.handle import Handle
from prunetune.runtime.suffix import run_suffix
from prunetune.scorers import SCORERS

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


# -- a search's evaluator ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


@pytest.fixture(scope="module")
def measuring(loaded):
    """Groups of four, two and one, in the order of a search: mixed."""
    found, _ = load_calibration("tiny", samples=160)
    pictures = list(dict.fromkeys(s.image_id for s in found))
    sizes = dict(zip(pictures, (4, 2, 1, 4, 3)))
    chosen, taken = [], dict.fromkeys(pictures, 0)
    for sample in found:
        taken[sample.image_id] += 1
        if taken[sample.image_id] <= sizes.get(sample.image_id, 0):
            chosen.append(sample)
    # The very same question twice is two samples.
    return Evaluator(loaded, CalibrationSet((*chosen, chosen[0])), deepest=2, batch_size=3)


def searched(*layers, names=("cls_attention", "topv", "coverage"), restorer=None):
    scorers = tuple(SCORERS.get(n)(name=n) for n in names)
    kept = dict(zip(layers, (0.3, 0.1)))
    stages = tuple(
        Stage(layer=k, retention=r, scorers=scorers, restorer=restorer) for k, r in kept.items()
    )
    return PruningConfig(model=ModelRef(model_type="llava_next", num_layers=16), stages=stages)


def presets():
    options = {"model_type": "llava_next", "num_layers": 16, "keep": 0.25}
    return [load_preset(name, **options)[0] for name in ("fastervlm", "vflowopt", "topv")]


CONFIGS = {
    **dict(zip(("fastervlm", "vflowopt", "topv"), presets())),
    "0+3": searched(0, 3),
    "2+9": searched(2, 9),
    "behind": searched(4),
    "recycled": searched(1, 5, restorer={"name": "grid_recycling"}),
}


def columns(measuring, config, *, shares, answers=False):
    measuring.shares = shares
    found = [pair for batch in measuring.evaluate(config, answers=answers) for pair in batch]
    assert [index for index, _ in found] == list(range(len(measuring.samples)))
    numbers = torch.tensor([[r.gap, r.kl] for _, r in found])
    return numbers, [(r.agrees, r.correct) for _, r in found]


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_evaluator_gives_the_same_either_way(measuring, name, answers, monkeypatch):
    shared = []
    real = evaluator.collate_rows
    monkeypatch.setattr(
        evaluator, "collate_rows", lambda rows, *a, **o: shared.append(rows) or real(rows, *a, **o)
    )
    monkeypatch.setattr(batching, "FIRST_LOOK", 3)
    one = columns(measuring, CONFIGS[name], shares=True, answers=answers)
    assert any(len(row) > 1 for rows in shared for row in rows)
    done = len(shared)
    other = columns(measuring, CONFIGS[name], shares=False, answers=answers)
    assert len(shared) == done
    torch.testing.assert_close(one[0], other[0], atol=TOLERANCE, rtol=0)
    assert one[1] == other[1]


def test_a_config_that_reads_the_question_shares_nothing(measuring, monkeypatch):
    monkeypatch.setattr(evaluator, "collate_rows", None)
    config = searched(2, names=("last_query",))
    assert config.prompt_dependent
    one = columns(measuring, config, shares=True)
    assert torch.equal(one[0], columns(measuring, config, shares=False)[0])
    with pytest.raises(TypeError):
        columns(measuring, CONFIGS["2+9"], shares=True)


def test_a_look_is_taken_before_anything_else_is_measured(measuring, monkeypatch):
    measuring.shares = True
    measured = []
    real = Evaluator._measure

    def noted(self, handle, part, rows, answers):
        measured.extend(part)
        return real(self, handle, part, rows, answers)

    monkeypatch.setattr(Evaluator, "_measure", noted)
    monkeypatch.setattr(batching, "FIRST_LOOK", 3)
    batches = measuring.evaluate(CONFIGS["0+3"], answers=False)
    first = [index for index, _ in next(batches)]
    assert sorted(measured) == first
    # Later ones bring their mates, once each.
    list(batches)
    assert sorted(measured) == list(range(len(measuring.samples)))


def test_long_questions_take_several_rows():
    sizes = [batching.Length(300 + text, 250, 0, 300, "a") for text in (200, 200, 200, 600, 5)]
    sizes += [batching.Length(310, 250, 0, 300, ""), batching.Length(310, 250, 0, 300, "")]
    assert batching.in_rows(range(7), sizes) == [[0, 1], [2], [3], [4], [5], [6]]
    batches = batching.in_batches([[0, 1], [2]], sizes, 0.1, 1 << 20, None)
    assert batches == [[[2], [0, 1]]]
