"""What reaches a model, which answers match, and batches that cost least."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sets import QUICK, picture, sample

from prunetune.calibration import (
    Sample,
    answers_match,
    batches_by_length,
    encode,
    normalise_answer,
)
from prunetune.errors import DataError
from prunetune.models import EMBEDDED


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(EMBEDDED, local_files_only=True)


def test_encode_pads_left_and_warns_of_nothing(processor, caplog, recwarn):
    samples = [
        sample(picture(0, (128, 128)), "how many objects ?"),
        sample(picture(1, (128, 64)), "what color is the square ?"),
    ]
    batch = encode(processor, samples)
    assert not recwarn.list
    assert not caplog.records
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["attention_mask"][:, 0].tolist() != [1, 1]
    alone = encode(processor, samples[1:])
    length = alone["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][1, -length:], alone["input_ids"][0])
    text = processor.tokenizer.decode(alone["input_ids"][0])
    assert text.endswith("what color is the square ? ASSISTANT:")


def test_encode_without_a_chat_template(processor, monkeypatch):
    samples = [sample(picture(0, (64, 64)), "how many objects ?")]
    templated = encode(processor, samples)
    monkeypatch.setattr(processor, "chat_template", None)
    plain = encode(processor, samples)
    visual = [(batch["input_ids"] == 4).sum().item() for batch in (templated, plain)]
    assert visual[0] == visual[1] > 64
    text = processor.tokenizer.decode(plain["input_ids"][0], skip_special_tokens=True)
    assert "USER:" in text
    assert text.endswith("how many objects ? ASSISTANT:")


def test_encode_takes_no_placeholder_from_a_question(processor):
    good, bad = (sample(picture(0), q) for q in ("what shape ?", "what <image> shape ?"))
    first, second = encode(processor, [good]), encode(processor, [bad])
    assert first["input_ids"].tolist() == second["input_ids"].tolist()


def test_encode_refuses_nothing_at_all(processor):
    with pytest.raises(DataError, match="0 samples"):
        encode(processor, [])
    with pytest.raises(DataError, match="0 pictures"):
        encode(processor, [Sample((), "q")])


@pytest.mark.parametrize(
    ("predicted", "answer", "same"),
    [
        ("Red", "red", True),
        (" The red  square. ", "red square", True),
        ("a", "A", True),
        ("A", "B", False),
        ("A", "", False),
        ("two", "too", False),
        ("3.5", "35", False),
        ("1,000", "1000", True),
        ("-5", "5", False),
        ("well-known", "well known", True),
        ("don't", "dont", True),
        ("?", "!", False),
        ("red, blue", "red blue", True),
        ("athe", "the", False),
        ("\uff13", "3", True),
    ],
)
def test_answers_match(predicted, answer, same):
    assert answers_match(predicted, answer) is same
    assert answers_match(answer, predicted) is same


@QUICK
@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@QUICK
@given(
    lengths=st.lists(st.integers(1, 300), max_size=40),
    budget=st.integers(1, 1000),
    most=st.none() | st.integers(1, 5),
)
def test_batches_hold_every_prompt_once_within_the_budget(lengths, budget, most):
    batches = batches_by_length(lengths, budget, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert most is None or len(batch) <= most


@QUICK
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7),
    budget=st.integers(1, 100),
    cost=st.none() | st.integers(0, 60),
)
def test_batches_cost_least(lengths, budget, cost):
    def spent(batches):
        once = sum(lengths) * len(lengths) if cost is None else cost
        return sum(len(batch) * max(lengths[i] for i in batch) + once for batch in batches)

    found = batches_by_length(lengths, budget, batch_cost=cost)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cuts = itertools.product((False, True), repeat=len(order) - 1)
    every = (cut_up(order, cut) for cut in cuts)
    allowed = [
        batches
        for batches in every
        if all(len(b) == 1 or len(b) * lengths[b[-1]] <= budget for b in batches)
    ]
    if cost is None:
        assert len(found) == min(map(len, allowed))
    else:
        assert spent(found) == min(map(spent, allowed))


def cut_up(order, cuts):
    batches = [[order[0]]]
    for index, cut in zip(order[1:], cuts, strict=True):
        if cut:
            batches.append([])
        batches[-1].append(index)
    return batches


def test_batches_fill_their_budget_and_check_their_bounds():
    assert batches_by_length([10, 20, 30], 90, batch_cost=0) == [[0], [1], [2]]
    assert batches_by_length([10, 20, 30], 90, batch_cost=90) == [[0, 1, 2]]
    assert batches_by_length([10] * 8, 40) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for bounds in ((0, None), (10, 0)):
        with pytest.raises(DataError, match="allowed: 1 or more"):
            batches_by_length([1], *bounds)
