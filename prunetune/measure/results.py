"""What a config did to a sample: its final state and next token, pruned against unpruned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetune.calibration import same_tokens
from prunetune.calibration.answers import surely_said
from prunetune.measure.reference import Reference
from prunetune.numerics import exactly


@dataclass(frozen=True)
class SampleResult:
    """What a config did to one sample.

    Attributes:
        gap: 1 - cosine of the last prompt token's final states, in [0, 2]; NaN where a state is.
        kl: KL(unpruned || pruned) of the next-token distribution, in nats.
        agrees: Whether the most likely next token is the same.
        correct: Whether greedy decoding gives the expected answer; None where there is none, or it
            was not asked for.
        kl_answer: Mean of the same KL along the unpruned model's own answer; None: not asked for.
        begun: Token ids that greedy decoding surely begins with, where that is not it.
    """

    gap: float
    kl: float
    agrees: bool
    correct: bool | None
    kl_answer: float | None = None
    begun: tuple[int, ...] = ()


@exactly()
def compare(
    tail: Tensor,
    logits: Tensor,
    references: Sequence[Reference],
    answers: Sequence[list[int] | None],
    eos: frozenset[int],
) -> list[SampleResult]:
    """Compare pruned final states with the references, sample by sample.

    Args:
        tail: ``[B, t, d]`` final states of the last slots, pruned.
        logits: ``[B, t, vocabulary]`` float32.
        references: The same samples, unpruned.
        answers: Token ids that followed each prompt; None where none did.
        eos: Ids that end an answer.
    """
    rows = torch.arange(len(tail), device=tail.device)
    at = tail.shape[1] - 1 - torch.tensor([len(a or []) for a in answers], device=tail.device)
    before = torch.stack([r.tail[0] for r in references]).to(tail.device)
    unpruned = torch.stack([r.log_probs for r in references]).to(tail.device)
    # float64: near 1 a float32 cosine has steps of 6e-8.
    cosine = torch.nn.functional.cosine_similarity(tail[rows, at].double(), before.double(), dim=-1)
    pruned = logits[rows, at].log_softmax(-1)
    kl = (unpruned.exp() * (unpruned - pruned)).sum(-1)
    agrees = pruned.argmax(-1) == unpruned.argmax(-1)
    # Not Python's max: max(0.0, nan) is 0.0, and a state of NaN would be the best there is.
    columns = ((1 - cosine).clamp_min(0).tolist(), kl.clamp_min(0).tolist(), agrees.tolist())
    predicted = [row[start:] for row, start in zip(logits.argmax(-1).tolist(), at.tolist())]
    correct = [same_tokens(row, answer, eos) for row, answer in zip(predicted, answers)]
    begun = [
        surely_said(row, answer or []) if right is False else ()
        for row, answer, right in zip(predicted, answers, correct)
    ]
    return [SampleResult(g, k, a, c, begun=b) for g, k, a, c, b in zip(*columns, correct, begun)]
