"""Questions about the same pictures in one row: the pruned pictures are run once for all."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunetune.measure.packing import Batch
from prunetune.measure.reference import Reference
from prunetune.runtime.choice.taps import LayerTap
from prunetune.runtime.suffix import Branches, Prefix
from prunetune.runtime.vision.tower import VisionCapture


def collate_rows(
    rows: Sequence[Sequence[Reference]],
    first_layer: int,
    device: torch.device,
    *,
    answers: bool,
    tapped: bool,
) -> Batch:
    """Return references as one left-padded batch whose rows hold several prompts each.

    A row is what its prompts share, of the first of them, then the rest of each: with the
    positions that it has by itself, and hidden from the others.

    Args:
        rows: References with the same ``prefix`` each.
        first_layer: Of a config's first stage, see ``prunetune.measure.packing.collate``.
        device: Of the model.
        answers: Whether expected answers follow the prompts.
        tapped: Whether the first stage asks for the tap of the layer before it.
    """
    layer = min(first_layer, max(rows[0][0].states))
    firsts = [row[0] for row in rows]
    shared = [first.shared for first in firsts]
    ends = [[len(r.image_mask) if answers else r.query + 1 for r in row] for row in rows]
    texts = [[end - start for end in own] for start, own in zip(shared, ends)]
    width = max(start + sum(own) for start, own in zip(shared, texts))

    def together(part: Callable[[Reference], Tensor]) -> Tensor:
        made = part(firsts[0]).new_empty(len(rows), width, *part(firsts[0]).shape[1:])
        for out, row, start, own in zip(made, rows, shared, texts):
            at = width - start - sum(own)
            out[:at] = 0
            out[at : at + start] = part(row[0])[:start]
            at += start
            for r, text in zip(row, own):
                out[at : at + text] = part(r)[start : start + text]
                at += text
        return made.to(device)

    tap = None
    if tapped and layer == first_layer and layer - 1 in firsts[0].taps:
        tap = LayerTap(together(lambda r: r.taps[layer - 1].source))
        if firsts[0].taps[layer - 1].target is not None:
            tap.target = together(lambda r: _target(r, layer - 1))
    labels = _labels(shared, texts, width)
    prefix = Prefix(
        layer=layer,
        hidden=together(lambda r: r.states[layer]),
        embeddings={
            kind: (
                together(lambda r, kind=kind: r.embeddings[kind][0]),  # type: ignore[misc]
                together(lambda r, kind=kind: r.embeddings[kind][1]),  # type: ignore[misc]
            )
            for kind in firsts[0].embeddings
        },
        position_ids=together(lambda r: r.position_ids),
        valid=(labels >= 0).to(device),
        image_mask=together(lambda r: r.image_mask),
        capture=VisionCapture([i.to(device) for r in firsts for i in r.images], joined=True),
        query=torch.full((len(rows),), width - 1, dtype=torch.long, device=device),
        tap=tap,
        injected=[torch.cat(parts).to(device) for parts in zip(*(r.injected for r in firsts))],
        branches=_branches(labels, texts, device),
    )
    return Batch(prefix, [r.answer if answers else None for row in rows for r in row])


def _target(reference: Reference, layer: int) -> Tensor:
    target = reference.taps[layer].target
    assert target is not None
    return target


def _labels(shared: Sequence[int], texts: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return 0 at what a row's prompts share, 1.. at the rest of each, -1 at padding."""
    labels = torch.full((len(shared), width), -1, dtype=torch.long, device="cpu")
    for row, start, own in zip(labels, shared, texts):
        counts = torch.tensor([start, *own], device="cpu")
        numbers = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
        row[width - len(numbers) :] = numbers
    return labels


def _branches(labels: Tensor, texts: Sequence[Sequence[int]], device: torch.device) -> Branches:
    labels = labels.to(device)
    asks, asked = labels[:, :, None], labels[:, None]
    seen = ((asked == 0) | (asked == asks)) & (asked >= 0) & (asks >= 0)
    row = [b for b, own in enumerate(texts) for _ in own]
    behind = [sum(own[j + 1 :]) for own in texts for j in range(len(own))]
    return Branches(
        seen.tril()[:, None],
        torch.tensor(row, dtype=torch.long, device=device),
        torch.tensor(behind, dtype=torch.long, device=device),
    )
