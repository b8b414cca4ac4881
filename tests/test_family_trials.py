"""What a search starts from, for families with blocks, kinds of layers and joined views."""

from types import SimpleNamespace

import pytest
import torch
from family_models import each
from reference import worst
from reference_models import make_batch, make_config, tiny

import prunetune
from prunetune.families.base import Family
from prunetune.families.paligemma import PaliGemma
from prunetune.runtime.apply import family_of
from prunetune.runtime.handle import Handle
from prunetune.runtime.suffix import run_suffix
from prunetune.search import reference as search_reference
from prunetune.search.packing import pack, unpack
from prunetune.search.reference import Prompts, Recorder

TOLERANCE = 1e-5
NAMES = ("gemma3", "idefics3", "internvl", "llava_next", "paligemma", "smolvlm")


def prompts_of(batch):
    inputs = dict(batch.inputs)
    ids, _ = inputs.pop("input_ids"), inputs.pop("attention_mask")
    query = torch.full((len(ids),), ids.shape[1] - 1)
    return Prompts(ids, batch.valid, query, [None] * len(ids), inputs)


@torch.no_grad()
def trial(name, first):
    """Return how far a trial is from the pruned model, and a reference from the unpruned one."""
    model = tiny(name)
    batch, view = make_batch(model), family_of(model)
    reference = unpack(*pack(Recorder(view, deepest=3).record(prompts_of(batch), 0)))
    scorer = "random" if first == 0 else "last_query"
    config = make_config(model, [(first, 0.3, (scorer, "cls_attention")), (5, 0.1, ())])
    with Handle(view, config) as handle:
        got = run_suffix(handle, reference.prefix(first), tail=1)
        assert handle.trace[-1].lengths == batch.images
    with prunetune.apply(model, config):
        expected = model.model(**batch.inputs).last_hidden_state[:, -1:]
    plain = model.model(**batch.inputs).last_hidden_state[:, -1:]
    assert worst(got, plain) > 0.02
    return max(worst(got, expected), worst(reference.tail, plain))


@pytest.mark.parametrize("first", [0, 2, 4])
@pytest.mark.parametrize("name", each(*NAMES))
def test_a_trial_gives_what_the_pruned_model_gives(name, first):
    """From stored states on, through the disk's format, against a whole pruned forward."""
    assert trial(name, first) < TOLERANCE


def blocks_forgotten(patch):
    prefix = search_reference.Reference.prefix

    def without(self, first):
        made = prefix(self, first)
        made.blocks = None
        return made

    patch.setattr(search_reference.Reference, "prefix", without)


def one_kind(patch):
    patch.setattr(Family, "layer_kind", lambda self, layer: "full_attention")


@pytest.mark.parametrize(
    ("mutant", "name", "first"),
    [
        (blocks_forgotten, "gemma3", 0),
        (blocks_forgotten, "gemma3", 4),
        (blocks_forgotten, "paligemma", 4),
        (one_kind, "gemma3", 2),
    ],
)
def test_red_with_a_bug(mutant, name, first, monkeypatch):
    mutant(monkeypatch)
    assert trial(name, first) > 100 * TOLERANCE


def test_an_answer_does_not_join_the_block_of_its_prompt(monkeypatch):
    encoded = {
        "input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "token_type_ids": torch.zeros(2, 3, dtype=torch.long),
    }
    monkeypatch.setattr(search_reference, "encode", lambda processor, samples: encoded)
    processor = SimpleNamespace(tokenizer=lambda text, **options: {"input_ids": [11, 12]})
    samples = [SimpleNamespace(answer="yes"), SimpleNamespace(answer=None)]
    device = torch.device("cpu")
    made = search_reference.prepare(processor, samples, device, PaliGemma.answer_kind)
    assert made.pixels["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    made = search_reference.prepare(processor, samples, device, Family.answer_kind)
    assert made.pixels["token_type_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
