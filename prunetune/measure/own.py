"""The unpruned model's own greedy answer: what it is, and how far a config moves its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunetune.families import Family
from prunetune.measure.reference import OwnAnswer, Reference
from prunetune.numerics import exactly
from prunetune.runtime.choice.taps import LayerTap


@dataclass
class Steps:
    """What one-token forwards of the unpruned model left behind, token by token.

    Attributes:
        states: Decoder layer to the ``[1, 1, d]`` states entering it, of each token.
        embeddings: Kind of layer to rotary cos and sin, ``[1, 1, head_dim]``, of each token.
        finals: ``[1, 1, d]`` after the final norm, of each token.
    """

    states: list[dict[int, Tensor]]
    embeddings: list[dict[str, tuple[Tensor, ...]]]
    finals: list[Tensor]

    def answer(self, ids: list[int], reference: Reference) -> OwnAnswer:
        """Return the answer that ``ids`` are."""

        def joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
            return torch.cat([part[0] for part in parts]) if parts else like[:0]

        at = reference.query
        turned = {
            kind: tuple(
                joined([step[kind][k] for step in self.embeddings], like)
                for k, like in enumerate(pair)
            )
            for kind, pair in reference.embeddings.items()
        }
        behind = torch.arange(1, len(ids) + 1, device=reference.position_ids.device)
        return OwnAnswer(
            ids=ids,
            states={
                k: joined([step[k] for step in self.states], like)
                for k, like in reference.states.items()
            },
            embeddings=turned,
            position_ids=reference.position_ids[at] + behind,
            tail=torch.cat([reference.tail[:1], *(final[0] for final in self.finals)]),
        )


def followed_by_own(reference: Reference, first_layer: int) -> Reference:
    """Return what a trial from ``first_layer`` on needs of a reference, its own answer behind it.

    Instead of the expected one; ``answer`` are the own answer's tokens.
    """
    own, end = reference.own, reference.query + 1
    assert own is not None
    if not reference.states:
        return replace(reference, answer=own.ids)
    layer = min(first_layer, max(reference.states))
    count = len(own.ids)

    def behind(prompt: Tensor, answer: Tensor) -> Tensor:
        return torch.cat([prompt[:end], answer])

    def padded(part: Tensor | None) -> Tensor | None:
        # A tap is read at the tokens of pictures only.
        return None if part is None else behind(part, part.new_zeros(count, *part.shape[1:]))

    taps = {}
    if (tap := reference.taps.get(layer - 1)) is not None:
        source = padded(tap.source)
        assert source is not None
        taps[layer - 1] = LayerTap(source, padded(tap.target), padded(tap.row))
    blocks = reference.blocks
    return replace(
        reference,
        answer=own.ids,
        states={layer: behind(reference.states[layer], own.states[layer])},
        taps=taps,
        embeddings={
            kind: tuple(behind(*pair) for pair in zip(pairs, own.embeddings[kind], strict=True))
            for kind, pairs in reference.embeddings.items()
        },
        position_ids=behind(reference.position_ids, own.position_ids),
        image_mask=behind(reference.image_mask, reference.image_mask.new_zeros(count)),
        # An answer attends causally.
        blocks=None if blocks is None else behind(blocks, blocks.new_full((count,), -1)),
    )


@exactly()
def answer_kl(family: Family, logits: Tensor, references: Sequence[Reference]) -> list[float]:
    """Return each sample's mean KL(unpruned || pruned) along its own answer, in nats.

    Of the next token after the prompt and after each of the answer's tokens.

    Args:
        family: Of the model.
        logits: ``[B, t, vocabulary]`` float32 of the last slots, pruned, own answers behind.
        references: The same samples, unpruned.
    """
    found = []
    for row, reference in zip(logits, references, strict=True):
        assert reference.own is not None
        before = family.logits(reference.own.tail.to(row.device)).float().log_softmax(-1)
        after = row[len(row) - len(before) :].log_softmax(-1)
        found.append((before.exp() * (before - after)).sum(-1).clamp_min(0).mean())
    values: list[float] = torch.stack(found).tolist()
    return values


def own_tensors(own: OwnAnswer) -> dict[str, Tensor]:
    """Return an answer's tensors by name; its ids are a plain fact."""
    tensors = {"own.position_ids": own.position_ids, "own.tail": own.tail}
    tensors |= {f"own.states.{k}": part for k, part in own.states.items()}
    for kind, (cos, sin) in own.embeddings.items():
        tensors |= {f"own.cos.{kind}": cos, f"own.sin.{kind}": sin}
    return tensors


def own_of(tensors: Mapping[str, Tensor], ids: Any) -> OwnAnswer | None:
    """Return the answer that ``own_tensors`` was given; None without ids.

    Raises:
        KeyError: A tensor is missing.
    """
    if ids is None:
        return None
    states = [k for k in tensors if k.startswith("own.states.")]
    kinds = [k.removeprefix("own.cos.") for k in tensors if k.startswith("own.cos.")]
    return OwnAnswer(
        ids=list(ids),
        states={int(k.rsplit(".", 1)[1]): tensors[k] for k in states},
        embeddings={k: (tensors[f"own.cos.{k}"], tensors[f"own.sin.{k}"]) for k in kinds},
        position_ids=tensors["own.position_ids"],
        tail=tensors["own.tail"],
    )
