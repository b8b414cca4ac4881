"""Answers: a model's own, and expected ones: their tokens, ends, and whether a model gives one."""

from collections.abc import Sequence
from typing import Any

from prunetune.calibration.collate import encode
from prunetune.calibration.dataset import Sample
from prunetune.models.devices import device_of


def greedy_answer(loaded: Any, sample: Sample, new_tokens: int) -> str:
    """Return what a model answers to a sample, under the config that is applied, if one is.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        sample: With at least one picture.
        new_tokens: At most so many.
    """
    inputs = encode(loaded.processor, [sample]).to(device_of(loaded.model))
    ids = loaded.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1)
    new = ids[0, inputs["input_ids"].shape[1] :]
    text: str = loaded.processor.tokenizer.decode(new, skip_special_tokens=True)
    return text.strip()


def answer_ids(processor: Any, sample: Sample) -> list[int] | None:
    """Return the tokens of a sample's expected answer; None where it has none."""
    if sample.answer is None:
        return None
    return list(processor.tokenizer(sample.answer, add_special_tokens=False)["input_ids"])


def end_ids(model: Any) -> frozenset[int]:
    """Return the ids that end what a model generates; empty where it says none."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def exact_answer(
    predicted: Sequence[int], answer: list[int] | None, ends: frozenset[int]
) -> bool | None:
    """Tell whether greedy decoding gives exactly the expected answer.

    Greedy decoding yields the answer if and only if, with the answer's tokens fed in, the most
    likely token is right at every position and an end token follows. So what was predicted may be
    either: the most likely tokens over a fed answer, or what was generated.

    Args:
        predicted: Token ids from the first one after the prompt on; may end early.
        answer: Token ids; None: not asked.
        ends: Ids that end an answer; empty: any token may follow.
    """
    if answer is None:
        return None
    ended = not ends or not ends.isdisjoint(predicted[len(answer) :][:1])
    return list(predicted[: len(answer)]) == answer and ended
