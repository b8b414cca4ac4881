"""The KL along the model's own answer, against whole forwards with that answer fed in."""

from dataclasses import replace

import pytest
import torch
from family_models import each, family
from reference_models import make_batch, make_config, tiny

import prunetune
from prunetune.calibration import CalibrationSet, load_calibration
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.errors import StudyError
from prunetune.families import Family
from prunetune.measure import continued, own
from prunetune.measure.continued import ContinuingRecorder
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.own import answer_kl, followed_by_own
from prunetune.measure.packing import collate, pack, unpack
from prunetune.measure.prompts import Prompts
from prunetune.measure.results import SampleResult, compare
from prunetune.measure.scores import Scores
from prunetune.measure.sharing import collate_rows
from prunetune.models import load_model
from prunetune.runtime.apply import family_of
from prunetune.runtime.handle import Handle
from prunetune.runtime.suffix import run_suffix
from prunetune.spec import StudySpec
from prunetune.study.trials.trials import sample_value

TOLERANCE = 1e-5
MOST = 4
CPU = torch.device("cpu")
NAMES = ("gemma3", "internvl", "llava_next", "paligemma", "qwen2_5_vl", "qwen3_vl")


def grown(model, batch, ids):
    """Return a row's inputs with an answer's tokens behind it."""
    length, inputs = batch.length, dict(batch.inputs)
    kinds = [family_of(model).answer_kind] * len(ids)
    for name, value in inputs.items():
        if value.shape[:2] == (1, length) and value.ndim == 2:
            tail = {"input_ids": ids, "attention_mask": [1] * len(ids)}.get(name, kinds)
            inputs[name] = torch.cat([value, value.new_tensor([tail])], 1)
    return inputs


@torch.no_grad()
def greedy(model, batch, ends):
    """Return the model's own answer, by whole forwards without a cache, and its distributions."""
    ids, rows = [], []
    while True:
        rows.append(
            model(**grown(model, batch, ids), use_cache=False).logits[0, -1].log_softmax(-1)
        )
        chosen = int(rows[-1].argmax())
        if chosen in ends or len(ids) == MOST:
            return ids, torch.stack(rows)
        ids.append(chosen)


@torch.no_grad()
def expected(model, config, batch, ends):
    ids, before = greedy(model, batch, ends)
    with prunetune.apply(model, config):
        output = model(**grown(model, batch, ids), use_cache=False, logits_to_keep=len(ids) + 1)
    after = output.logits[0].log_softmax(-1)
    return ids, float((before.exp() * (before - after)).sum(-1).mean())


def prompts_of(model, batch):
    """As if two more tokens were the expected answer: they change nothing."""
    inputs = grown(model, batch, [11, 12])
    ids, valid = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
    return Prompts(ids, valid, torch.tensor([ids.shape[1] - 3]), [[11, 12]], inputs)


@torch.no_grad()
def measured(name, config_of, *, shared=False):
    """Return answers and KLs of a ragged batch: expected ones, and a trial's."""
    made = family(name)
    model, rows = (
        tiny(name),
        ((4, made.image, 5), (2, made.image, 3, made.other, 6), (1, made.other, 3)),
    )
    view, config = family_of(model), config_of(model)
    batches = [make_batch(model, [row], seed=k) for k, row in enumerate(rows)]
    free = [greedy(model, batch, ())[0] for batch in batches]
    # Answers of unequal length: nothing, two tokens, as many as may be.
    ends = {free[0][0]} | ({free[1][2]} - set(free[1][:2]))
    right = [expected(model, config, batch, ends) for batch in batches]
    references = []
    for batch in batches:
        recorder = ContinuingRecorder(view, deepest=3)
        one = recorder.record(prompts_of(model, batch), own=MOST, ends=frozenset(ends))
        one.log_probs = view.logits(one.tail[0]).float().log_softmax(-1)
        references.append(unpack(*pack(one)))
    first = config.stages[0].layer
    along = [followed_by_own(reference, first) for reference in references]
    with Handle(view, config) as handle:
        given = {"answers": True, "tapped": first - 1 in handle.plan.tapped}
        batch = (
            collate_rows([[r, r] for r in along], first, CPU, **given)
            if shared
            else collate(along, first, CPU, **given)
        )
        if shared:
            along = [r for r in along for _ in range(2)]
        tail = run_suffix(handle, batch.prefix, 1 + max(len(r.own.ids) for r in along))
    logits = view.logits(tail).float()
    kls = answer_kl(view, logits, along)
    found = compare(tail, logits, along, batch.answers, frozenset(ends))
    if shared:
        kls, found = kls[::2], found[::2]
    return right, [r.own.ids for r in references], kls, found


CONFIGS = {
    "query": lambda model: make_config(model, [(2, 0.3, ("last_query", "random")), (4, 0.1, ())]),
    "0": lambda model: make_config(model, [(0, 0.3, ("random",))]),
    "behind": lambda model: make_config(model, [(5, 0.1, ("topv",))]),
}


def far(right, kls):
    return max(abs(kl - found) for (_, kl), found in zip(right, kls))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", each(*NAMES))
def test_the_kl_along_the_own_answer(name, config):
    right, ids, kls, found = measured(name, CONFIGS[config])
    assert ids == [own for own, _ in right]
    assert ids[0] == []
    assert len({len(one) for one in ids}) > 1
    assert far(right, kls) < TOLERANCE
    # An empty answer has the next token's distribution alone.
    assert kls[0] == pytest.approx(found[0].kl, abs=1e-6)
    assert max(abs(kls[k] - found[k].kl) for k in (1, 2)) > 10 * TOLERANCE


@pytest.mark.parametrize("name", each("llava_next", "qwen2_5_vl"))
def test_own_answers_in_shared_rows(name):
    right, _, kls, _ = measured(name, CONFIGS["0"], shared=True)
    assert far(right, kls) < TOLERANCE


def one_slot_early(patch):
    real = own.answer_kl

    def early(view, logits, references):
        return real(view, logits.roll(1, 1), references)

    patch.setitem(globals(), "answer_kl", early)


def positions_one_behind(patch):
    real = own.Steps.answer

    def late(self, ids, reference):
        made = real(self, ids, reference)
        kept = {k: tuple(p.roll(1, 0) for p in pair) for k, pair in made.embeddings.items()}
        return replace(made, embeddings=kept)

    patch.setattr(own.Steps, "answer", late)


def prompt_one_short(patch):
    real = continued._crop
    patch.setattr(continued, "_crop", lambda cache, tokens: real(cache, tokens - 1))


@pytest.mark.parametrize("bug", [one_slot_early, positions_one_behind, prompt_one_short])
def test_red_with_a_bug(bug, monkeypatch):
    bug(monkeypatch)
    right, ids, kls, _ = measured("llava_next", CONFIGS["query"])
    assert ids != [one for one, _ in right] or far(right, kls) > 10 * TOLERANCE


# -- a search's evaluator ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


@pytest.fixture(scope="module")
def samples():
    found, _ = load_calibration("tiny", samples=160)
    lists = [s for s in found if s.type == "list"][:3]
    mates = [s for s in found if s.image_id == lists[0].image_id and s not in lists]
    return CalibrationSet((*lists, *mates))


@pytest.fixture(scope="module")
def following(loaded, samples):
    return Evaluator(loaded, samples, deepest=2, own=6)


def config(first=1, name="cls_attention"):
    stages = (Stage(layer=first, retention=0.1, scorers=({"name": name},)),)
    return PruningConfig(model=ModelRef(model_type="llava_next", num_layers=16), stages=stages)


def results(evaluator, config, **options):
    return [r for batch in evaluator.evaluate(config, **options) for _, r in batch]


@pytest.mark.parametrize("name", ["cls_attention", "last_query"])
def test_lists_differ_and_all_else_stays(loaded, samples, following, name):
    plain = Evaluator(loaded, samples, deepest=2)
    along, usual = (results(e, config(name=name)) for e in (following, plain))
    for one, other in zip(along, usual):
        assert one.gap == pytest.approx(other.gap, abs=1e-5)
        assert one.kl == pytest.approx(other.kl, abs=1e-4)
        assert (one.agrees, one.correct) == (other.agrees, other.correct)
        assert other.kl_answer is None
    lists = [k for k, sample in enumerate(samples) if sample.type == "list"]
    assert all(abs(along[k].kl_answer - along[k].kl) > 1e-3 for k in lists)
    unasked = results(following, config(name=name), answers=False)
    assert [r.correct for r in unasked] == [None] * len(samples)
    for one, other in zip(along, unasked):
        assert one.kl_answer == pytest.approx(other.kl_answer, abs=1e-5)


def test_the_whole_model_and_the_disk_give_the_same(
    loaded, samples, following, tmp_path, monkeypatch
):
    right = results(following, config())
    disk = Evaluator(loaded, samples, deepest=2, own=6, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    kept = results(disk, config())
    monkeypatch.setattr(Family, "prefix_problem", lambda self: "a test says so")
    whole = results(Evaluator(loaded, samples, deepest=2, own=6), config())
    for one, two, three in zip(right, kept, whole):
        assert two.kl_answer == pytest.approx(one.kl_answer, abs=1e-5)
        assert three.kl_answer == pytest.approx(one.kl_answer, abs=1e-5)
        assert two.correct == three.correct == one.correct


def test_another_metric_has_the_key_it_always_had(loaded, samples, following):
    plain = Evaluator(loaded, CalibrationSet(samples.samples[:1]), deepest=2)
    keys = plain.full._key(), following.full._key()
    assert keys[0] != keys[1]
    plain.full._own = 6
    assert plain.full._key() == keys[1]


def test_the_metric():
    spec = StudySpec(model="tiny", metric="kl-answer")
    assert (spec.own_tokens, StudySpec(model="tiny").own_tokens) == (8, 0)
    found = SampleResult(0.1, 0.2, True, None, 0.3)
    assert sample_value("kl-answer", found) == 0.3
    with pytest.raises(StudyError, match="kl-answer"):
        sample_value("kl-answer", SampleResult(0.1, 0.2, True, None))
    assert Scores.of([found, found]).kl_answer == pytest.approx(0.3)
    assert Scores.of([replace(found, kl_answer=None)]).kl_answer is None
