"""The same prompts for two engines: transformers in this process, vLLM in one of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunetune.calibration import Sample, encode
from prunetune.calibration.collate import prompt_text
from prunetune.config import PruningConfig
from prunetune.runtime.apply import apply, family_of
from prunetune.vllm.jobs import Asked

Sets = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Answer:
    """What an engine made of a prompt.

    Attributes:
        ids: Tokens of the answer.
        prompt_tokens: Tokens of the prompt that the language model got.
        kept: Of each picture its image tokens, and which of them stayed.
    """

    ids: tuple[int, ...]
    prompt_tokens: int
    kept: Sets = ()


def asked(processor: Any, samples: Sequence[Sample], folder: Path) -> list[Asked]:
    """Return samples as vLLM takes them: the prompts of ``encode``, a placeholder a picture.

    Args:
        processor: Of the model.
        samples: Pictures and questions.
        folder: Where pictures are written.
    """
    prompts = []
    for number, sample in enumerate(samples):
        files = []
        for k, picture in enumerate(sample.images):
            file = folder / f"{number}-{k}.png"
            picture.convert("RGB").save(file)
            files.append(str(file))
        prompts.append(Asked(prompt_ids(processor, sample), files))
    return prompts


def prompt_ids(processor: Any, sample: Sample) -> list[int]:
    """Return a sample's prompt before its pictures' placeholders are multiplied."""
    text = prompt_text(processor, sample)
    tokenizer = processor.tokenizer
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not begins)["input_ids"]
    return ids


@torch.no_grad()
def answers(
    loaded: Any,
    config: PruningConfig | None,
    samples: Sequence[Sample],
    *,
    new_tokens: int,
    advance: Callable[[], None] = lambda: None,
    **generation: Any,
) -> list[Answer]:
    """Return what transformers answers, one prompt after another, greedily.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        config: None: unpruned.
        samples: Pictures and questions.
        new_tokens: Most tokens of an answer.
        advance: Called after every prompt.
        generation: Further arguments of ``generate``.
    """
    model, found = loaded.model, []
    marks = sorted(family_of(model).placeholders.values())
    placeholders = torch.tensor(marks, dtype=torch.int64, device="cpu")
    handle = None if config is None else apply(model, config)
    try:
        for sample in samples:
            inputs = encode(loaded.processor, [sample]).to(model.device, model.dtype)
            length = inputs["input_ids"].shape[1]
            out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **generation)
            ids = tuple(out[0, length:].tolist())
            kept: Sets = ()
            if handle is not None:
                kept = _kept(handle.trace[-1])
                visual = int(torch.isin(inputs["input_ids"][0].cpu(), placeholders).sum())
                length += sum(len(alive) for _, alive in kept) - visual
            found.append(Answer(ids, length, kept))
            advance()
    finally:
        if handle is not None:
            handle.remove()
    return found


def _kept(trace: Any) -> Sets:
    """Return what a forward of one prompt kept at layer 0, image by image."""
    slots, kept = trace.image_slots[0], trace.stages[0].kept[0]
    places = torch.searchsorted(slots, kept)
    sets, start = [], 0
    for length in trace.lengths[0]:
        mine = places[(places >= start) & (places < start + length)] - start
        sets.append((length, tuple(mine.tolist())))
        start += length
    return tuple(sets)


def answers_of(round_: Any) -> list[Answer]:
    """Return what a round of a child's run answered."""
    sets = round_["kept"]
    alone = len(sets) == len(round_["answers"])
    return [
        Answer(
            tuple(each["ids"]),
            each["prompt_tokens"],
            tuple((total, tuple(alive)) for total, alive in sets[k]) if alone else (),
        )
        for k, each in enumerate(round_["answers"])
    ]
