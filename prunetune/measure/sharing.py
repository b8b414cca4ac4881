"""Questions about the same pictures in one row: the pruned pictures are run once for all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.calibration.collate import batches_by_length
from prunetune.config import PruningConfig
from prunetune.families import Family
from prunetune.families.base_configs import text_window
from prunetune.measure.packing import Batch
from prunetune.measure.reference import Reference
from prunetune.runtime.suffix import Branches, Prefix
from prunetune.runtime.taps import LayerTap
from prunetune.runtime.vision import VisionCapture

MOST_TEXT = 512
"""Tokens of questions in one row: they also attend to one another, hidden as they are."""

MASK_CELLS = 1 << 27
"""Cells of a batch's mask, over unpruned tokens."""


@dataclass(frozen=True)
class Length:
    """Tokens of one sample.

    Attributes:
        prompt: All tokens of the prompt.
        image: Image tokens, separators included.
        separators: Separators.
        shared: Tokens up to the last picture's end.
        prefix: Digest of those; empty where they are not shared with other samples.
    """

    prompt: int
    image: int
    separators: int
    shared: int
    prefix: str

    @classmethod
    def of(cls, reference: Reference) -> "Length":
        """Return the lengths of a reference's prompt."""
        separators = sum(int(image.geometry.separator.sum()) for image in reference.images)
        sizes = reference.query + 1, reference.image_tokens, separators
        return cls(*sizes, reference.shared, reference.prefix)


def can_share(family: Family, config: PruningConfig) -> bool:
    """Tell whether questions about the same pictures have the same pruned pictures, in one row.

    Not where what is kept depends on the question, the attention takes no mask that keeps questions
    apart, or a row might be longer than a window.
    """
    text: Any = family.text_model.config
    masked = getattr(text, "_attn_implementation", None) == "sdpa"
    return masked and text_window(text) is None and not config.prompt_dependent


def in_rows(indices: Iterable[int], lengths: Sequence[Length]) -> list[list[int]]:
    """Put samples with the same beginning into rows.

    Args:
        indices: Of samples.
        lengths: Of all samples of the split.
    """
    rows: list[list[int]] = []
    latest: dict[str, tuple[list[int], int]] = {}
    for index in indices:
        size = lengths[index]
        text = size.prompt - size.shared
        row, taken = latest.get(size.prefix, ([], 0))
        if not size.prefix or not row or taken + text > MOST_TEXT:
            row, taken = [], 0
            rows.append(row)
        row.append(index)
        latest[size.prefix] = (row, taken + text)
    return rows


def in_batches(
    rows: Sequence[list[int]],
    lengths: Sequence[Length],
    kept: float,
    token_budget: int,
    batch_cost: int | None,
) -> list[list[list[int]]]:
    """Fill batches with rows of similar length, by the tokens that survive.

    Args:
        rows: Samples of each row.
        lengths: Of all samples of the split.
        kept: Share of the image tokens that the first stage keeps.
        token_budget: Upper bound of a batch's tokens.
        batch_cost: See ``prunetune.calibration.collate.batches_by_length``.
    """
    whole = []
    tokens = []
    for row in rows:
        first = lengths[row[0]]
        whole.append(first.shared + sum(lengths[i].prompt - lengths[i].shared for i in row))
        tokens.append(whole[-1] - round((1.0 - kept) * first.image))
    most = None
    if any(len(row) > 1 for row in rows):
        most = max(1, MASK_CELLS // max(whole) ** 2)
    batches = batches_by_length(tokens, token_budget, most, batch_cost=batch_cost)
    return [[rows[i] for i in batch] for batch in batches]


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
