"""Which samples run together: in one row, in one batch, between two looks of the trial pruner."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from prunetune.calibration import Sample
from prunetune.calibration.collate import batches_by_length
from prunetune.config import PruningConfig
from prunetune.families import Family
from prunetune.families.base_configs import text_window
from prunetune.families.base_towers import Seen
from prunetune.measure.reference import Reference
from prunetune.spec import FIRST_LOOK

MOST_TEXT = 512
"""Tokens of questions in one row: they also attend to one another, hidden as they are."""

MASK_CELLS = 1 << 27
"""Cells of a batch's mask, over unpruned tokens."""


def fitting_budget(family: Family, device: torch.device) -> int:
    """Return how many tokens run together best.

    On a CPU a batch helps until matrices are some hundred rows high; beyond that its
    activations only fall out of the processor's cache (measured: benchmarks/search_cost.py).
    """
    if device.type != "cpu":
        return 1 << 15
    config = family.text_model.config
    return max(256, (1 << 20) // int(getattr(config, "intermediate_size", 4096)))


def by_images(samples: Sequence[Sample]) -> list[tuple[int, bool]]:
    """Return all samples, those about the same images one after the other.

    Returns:
        Each one's index, and whether the next is about the same images.
    """
    names = [sample.image_id or f"/{index}" for index, sample in enumerate(samples)]
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        first.setdefault(name, index)
    order = sorted(range(len(samples)), key=lambda i: (first[names[i]], i))
    followed = [names[one] == names[other] for one, other in pairwise(order)]
    return list(zip(order, [*followed, False]))


@dataclass(frozen=True)
class Length:
    """Tokens of one sample.

    Attributes:
        prompt: All tokens of the prompt.
        image: Image tokens, separators included.
        separators: Separators.
        shared: Tokens up to the last picture's end.
        prefix: Digest of those; empty where they are not shared with other samples.
        seen: What the vision tower was given.
    """

    prompt: int
    image: int
    separators: int
    shared: int
    prefix: str
    seen: Seen = field(default_factory=Seen)

    @classmethod
    def of(cls, reference: Reference) -> "Length":
        """Return the lengths of a reference's prompt."""
        separators = sum(int(image.geometry.separator.sum()) for image in reference.images)
        sizes = reference.query + 1, reference.image_tokens, separators
        return cls(*sizes, reference.shared, reference.prefix, reference.seen)


def can_share(family: Family, config: PruningConfig) -> bool:
    """Tell whether questions about the same pictures have the same pruned pictures, in one row.

    Not where what is kept depends on the question, the attention takes no mask that keeps questions
    apart, a row might be longer than a window, or states run along it.
    """
    text: Any = family.text_model.config
    masked = getattr(text, "_attn_implementation", None) == "sdpa"
    alone = text_window(text) is not None or family.hybrid
    return masked and not alone and not config.prompt_dependent


def mates_of(lengths: Sequence[Length]) -> dict[str, list[int]]:
    """Return the samples of each shared beginning."""
    mates: dict[str, list[int]] = {}
    for index, size in enumerate(lengths):
        if size.prefix:
            mates.setdefault(size.prefix, []).append(index)
    return mates


def with_mates(
    due: Sequence[int],
    found: Container[int],
    lengths: Sequence[Length],
    mates: Mapping[str, Sequence[int]],
) -> list[int]:
    """Return samples with all that are yet to be measured and begin like one of them.

    A trial that gets beyond its first look mostly comes to them; most are stopped there.

    Args:
        due: Samples to be measured now.
        found: Those that were measured and are yet to be handed out.
        lengths: Of all samples of the split.
        mates: Of ``mates_of``.
    """
    more: dict[int, None] = {}
    first = due[0] if due else 0
    for index in due:
        alike = () if index in found else mates.get(lengths[index].prefix, (index,))
        more.update(dict.fromkeys(i for i in alike if i not in found and i >= first))
    return list(more)


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


def windows(count: int, size: int) -> Iterator[range]:
    """Yield the samples whose results are handed out together.

    Twice as many at first, where nothing can be stopped before: more to choose from when batches of
    similar length are made.

    Args:
        count: Of samples.
        size: Samples between two looks.
    """
    end = min(count, 2 * size, max(size, FIRST_LOOK))
    yield range(end)
    for start in range(end, count, size):
        yield range(start, min(start + size, count))
