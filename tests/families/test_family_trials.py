"""What a search starts from, for families with blocks, kinds of layers and joined views."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from family_models import each, family
from family_models.paligemma import second
from reference import worst
from reference_models import make_batch, make_config, tiny

import prunetune
from prunetune.deploy import meter
from prunetune.families.base import Family
from prunetune.families.granite4_vision import Granite4Vision
from prunetune.families.paligemma import PaliGemma
from prunetune.measure import packing
from prunetune.measure import prompts as search_prompts
from prunetune.measure.packing import collate, pack, unpack
from prunetune.measure.prompts import Prompts
from prunetune.measure.reference import Recorder
from prunetune.runtime.apply import family_of
from prunetune.runtime.handle import Handle
from prunetune.runtime.suffix import run_suffix

TOLERANCE = 1e-5
NAMES = (
    "gemma3", "granite4_vision", "idefics3", "internvl", "llama4", "llava_next", "molmo2", "ovis2",
    "paddleocr_vl", "paligemma", "smolvlm",
)  # fmt: skip


def prompts_of(batch):
    inputs = dict(batch.inputs)
    ids, _ = inputs.pop("input_ids"), inputs.pop("attention_mask")
    return Prompts(ids, batch.valid, torch.tensor([ids.shape[1] - 1]), [None], inputs)


@torch.no_grad()
def trial(name, first, rows=None):
    """Return how far a trial is from the pruned model, and a reference from the unpruned one."""
    model = tiny(name)
    view, rows = family_of(model), rows or family(name).rows
    batches = [make_batch(model, [row], seed=k) for k, row in enumerate(rows)]
    recorder = Recorder(view, deepest=3)
    references = [unpack(*pack(recorder.record(prompts_of(batch)))) for batch in batches]
    scorer = "random" if first == 0 else "last_query"
    config = make_config(model, [(first, 0.3, (scorer, "cls_attention")), (5, 0.1, ())])
    with Handle(view, config) as handle:
        tapped = first - 1 in handle.plan.tapped
        together = collate(references, first, torch.device("cpu"), answers=False, tapped=tapped)
        got = run_suffix(handle, together.prefix, tail=1)
        assert handle.trace[-1].lengths == [batch.images[0] for batch in batches]

    def last(batch):
        return view.final_states(batch.inputs)[0][:, -1:]

    with prunetune.apply(model, config):
        expected = torch.cat([last(batch) for batch in batches])
    plain = torch.cat([last(batch) for batch in batches])
    assert worst(got, plain) > 0.02
    tails = torch.stack([r.tail for r in references])
    return max(worst(got, expected), worst(tails, plain))


@pytest.mark.parametrize("first", [0, 2, 4])
@pytest.mark.parametrize("name", each(*NAMES))
def test_a_trial_gives_what_the_pruned_model_gives(name, first):
    """From stored states on, through the disk's format, against a whole pruned forward."""
    assert trial(name, first) < TOLERANCE


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", each("llava", "llava_next", "paligemma"))
def test_a_trial_of_prompts_that_end_with_their_picture(name, first):
    """The gap is taken where an answer would begin: at the last survivor."""
    image = family(name).image
    assert trial(name, first, ((4, image), (2, image, 3, image))) < TOLERANCE


def blocks_forgotten(patch):
    patch.setattr(packing, "_blocks", lambda *given: None)


def one_kind(patch):
    patch.setattr(Family, "layer_kind", lambda self, layer: "full_attention")


def nothing_injected(patch):
    patch.setattr(Granite4Vision, "injected", lambda self, arguments: [])


@pytest.mark.parametrize(
    ("mutant", "name", "first"),
    [
        (blocks_forgotten, "gemma3", 0),
        (blocks_forgotten, "gemma3", 4),
        (blocks_forgotten, "paligemma", 4),
        (one_kind, "gemma3", 2),
        (nothing_injected, "granite4_vision", 2),
    ],
)
def test_red_with_a_bug(mutant, name, first, monkeypatch):
    mutant(monkeypatch)
    assert trial(name, first) > 100 * TOLERANCE


@torch.no_grad()
def test_capped_logits_are_measured_as_the_model_puts_them_out():
    model = second()
    inputs = dict(make_batch(model, ((3, 6, 4),)).inputs)
    expected = model(**inputs).logits
    states = model.model(**inputs).last_hidden_state
    assert worst(family_of(model).logits(states), expected) < 1e-6
    assert worst(meter._generate(model, inputs, 1).logits, expected[:, -1]) < 1e-6
    # The twin: what the head returns is something else.
    capped = "final_logit_softcapping" in inspect.getsource(type(model).forward)
    assert (worst(Family.logits(family_of(model), states), expected) > 1e-3) == capped


def test_an_answer_does_not_join_the_block_of_its_prompt(monkeypatch):
    encoded = {
        "input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "token_type_ids": torch.zeros(2, 3, dtype=torch.long),
    }
    monkeypatch.setattr(search_prompts, "encode", lambda processor, samples: encoded)
    processor = SimpleNamespace(tokenizer=lambda text, **options: {"input_ids": [11, 12]})
    samples = [SimpleNamespace(answer="yes", also=()), SimpleNamespace(answer=None, also=())]
    device = torch.device("cpu")
    made = search_prompts.prepare(processor, samples, device, PaliGemma.answer_kind)
    assert made.pixels["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    made = search_prompts.prepare(processor, samples, device, Family.answer_kind)
    assert made.pixels["token_type_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
