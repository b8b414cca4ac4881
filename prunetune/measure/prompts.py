"""Samples as the model takes them: a batch of prompts, each followed by its expected answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunetune.calibration import Sample, answer_ids, encode
from prunetune.families import Family
from prunetune.tokens import left_pad

TOKEN_KINDS = ("mm_token_type_ids", "token_type_ids")


@dataclass
class Prompts:
    """A batch of prompts, each followed by its expected answer.

    The answer's tokens come after the prompt, so they change nothing before them; with them one
    forward tells whether greedy decoding would produce exactly that answer.

    Attributes:
        input_ids: ``[B, S]`` int64, left-padded.
        valid: ``[B, S]`` bool.
        query: ``[B]`` int64, slot of each prompt's last token.
        answers: Token ids of each expected answer; None where the sample has none.
        pixels: The encoder's inputs, as the processor made them.
    """

    input_ids: Tensor
    valid: Tensor
    query: Tensor
    answers: list[list[int] | None]
    pixels: dict[str, Any]

    @property
    def tail(self) -> int:
        """Slots from the earliest prompt end to the end of the sequence."""
        return int(self.input_ids.shape[1] - self.query.min())


def prepare(
    processor: Any,
    samples: Sequence[Sample],
    device: torch.device,
    answer_kind: int = 0,
    *,
    answers: bool = True,
    given: Sequence[list[int] | None] | None = None,
) -> Prompts:
    """Tokenise a batch of samples.

    Args:
        processor: Of the model.
        samples: At least one.
        device: Of the result.
        answer_kind: Kind of an answer's tokens, where the model tells kinds apart.
        answers: Whether each prompt is followed by its expected answer.
        given: Token ids that follow each prompt instead.
    """
    inputs = dict(encode(processor, samples))
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
    kinds = {name: inputs.pop(name) for name in TOKEN_KINDS if name in inputs}
    expected: list[list[int] | None] = [
        answer_ids(processor, sample) if answers else None for sample in samples
    ]
    if given is not None:
        expected = list(given)
    rows = [row[m] for row, m in zip(ids, mask, strict=True)]
    full = [torch.cat([r, r.new_tensor(a or [])]) for r, a in zip(rows, expected)]
    padded, valid = left_pad(full)
    behind = torch.tensor([len(a or []) for a in expected], device=padded.device)
    for name, kind in kinds.items():
        parts = [
            F.pad(row[m], (0, len(a or [])), value=answer_kind)
            for row, m, a in zip(kind, mask, expected)
        ]
        inputs[name] = left_pad(parts)[0]
    pixels = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    query = padded.shape[1] - 1 - behind
    return Prompts(padded.to(device), valid.to(device), query.to(device), expected, pixels)


def positions(family: Family, prompts: Prompts) -> Tensor:
    """Return ``[B, S]`` int64 position ids, counted from each prompt's first token."""
    return (prompts.valid.long().cumsum(1) - 1).clamp_min(0) + family.first_position


def given_positions(family: Family, prompts: Prompts) -> Tensor | None:
    """Return what a model is passed as position ids; multimodal ones are its own to find."""
    return None if family.multimodal_positions else positions(family, prompts)
