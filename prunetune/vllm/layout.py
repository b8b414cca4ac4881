"""Where a picture's tokens lie in its part of a prompt, and how many stay at each place.

Most models have one run of them. Idefics 3 has one for each view, with text between: how many stay
of each has to be known before the picture is encoded, so each view gets its share of the count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.config import PruningConfig
from prunetune.errors import UnsupportedModelError
from prunetune.families import Family
from prunetune.selectors import shares
from prunetune.tokens import keep_count

_RUN = 3


@dataclass(frozen=True)
class Run:
    """Tokens of a picture that stand together.

    Attributes:
        first: Place of the first one, counted from where the picture's part of the prompt begins.
        size: How many there are.
        kept: How many of them stay.
    """

    first: int
    size: int
    kept: int


@dataclass(frozen=True)
class Layout:
    """A picture's part of a prompt.

    Attributes:
        length: Tokens of it before pruning, text between runs included.
        runs: In order.
    """

    length: int
    runs: tuple[Run, ...]

    @property
    def total(self) -> int:
        """Image tokens before pruning."""
        return sum(run.size for run in self.runs)

    @property
    def places(self) -> Tensor:
        """Where the image tokens stand before pruning, ``[total]`` int64 ascending."""
        ranges = ((run.first, run.first + run.size) for run in self.runs)
        parts = [torch.arange(*ends, device="cpu") for ends in ((0, 0), *ranges)]
        return torch.cat(parts)

    @property
    def left(self) -> Tensor:
        """Which tokens of the part are in the pruned prompt, the first ones of each run.

        ``[length - dropped]`` int64 ascending.
        """
        stays = torch.ones(self.length, dtype=torch.bool, device="cpu")
        for run in self.runs:
            stays[run.first + run.kept : run.first + run.size] = False
        return stays.nonzero().flatten()

    def holds(self, alive: Tensor) -> bool:
        """Tell whether each run keeps what it was promised, given ``[k]`` int64 of the tokens."""
        sizes = torch.tensor([run.size for run in self.runs], device=alive.device)
        owner = torch.bucketize(alive, sizes.cumsum(0), right=True)
        found = torch.bincount(owner, minlength=len(self.runs)).tolist()
        return bool(found == [run.kept for run in self.runs])

    def packed(self) -> Tensor:
        """Return it as numbers, which vLLM hands to the model, ``[1 + 3 runs]`` int64."""
        numbers = [n for run in self.runs for n in (run.first, run.size, run.kept)]
        return torch.tensor([self.length, *numbers], device="cpu")


def unpacked(numbers: Tensor) -> Layout:
    """Return what ``Layout.packed`` was made of."""
    length, *rest = numbers.flatten().tolist()
    runs = (Run(*rest[i : i + _RUN]) for i in range(0, len(rest), _RUN))
    return Layout(length, tuple(runs))


def whole(tokens: int, config: PruningConfig) -> Layout:
    """Return the layout of a picture of so many tokens in one run, and no text."""
    return Layout(tokens, (Run(0, tokens, kept_of(config, tokens)),))


def as_prompt(layouts: Sequence[Layout], ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return image tokens and the prompt that they stand in, as if it were of the pictures alone.

    Args:
        layouts: Of the pictures.
        ids: Each one's part of the prompt before pruning; empty where pictures have one run each:
            gaps tell them apart.

    Returns:
        Slots of the image tokens, ``[sum of totals]`` int64 ascending, and ``[S]`` int64 that is
        equal where tokens are equal.
    """
    begin, slots = 0, []
    for layout in layouts:
        slots.append(layout.places + begin)
        # A gap: pictures do not touch.
        begin += layout.length + (not ids)
    return torch.cat(slots), torch.cat(list(ids)) if ids else torch.arange(begin, device="cpu")


def kept_of(config: PruningConfig, total: int) -> int:
    """Return how many of a picture's image tokens stay."""
    return keep_count(total, config.stages[0].retention, total)


def layout_of(
    ids: Sequence[int], visual: Tensor, config: PruningConfig, family: Callable[[], Family] | None
) -> Layout:
    """Return where a picture's tokens lie, and how many stay.

    Args:
        ids: Of its part of the prompt.
        visual: ``[len(ids)]`` bool, True at image tokens.
        config: The pruning config.
        family: Makes the model's family view, where each view is a run; None: there is one run.

    Raises:
        UnsupportedModelError: There are several runs, and they are no views.
    """
    places = visual.nonzero().flatten()
    if not len(places):
        return Layout(len(ids), ())
    breaks = (places.diff() > 1).nonzero().flatten() + 1
    spans = torch.tensor_split(places, breaks.tolist())
    firsts, sizes = [int(span[0]) for span in spans], [len(span) for span in spans]
    kept = [kept_of(config, len(places))]
    if len(spans) > 1:
        if family is None:
            raise UnsupportedModelError(
                "prunetune: this model spreads a picture's tokens over several runs of its prompt; "
                "send pictures that it does not cut up"
            )
        kept = _of_views(family(), torch.tensor(ids, device="cpu"), places, sizes, kept[0])
    return Layout(len(ids), tuple(map(Run, firsts, sizes, kept)))


def _of_views(
    family: Family, ids: Tensor, places: Tensor, sizes: list[int], count: int
) -> list[int]:
    """Return how many tokens of each view stay, in the order of the prompt."""
    mosaics: list[Any] = family.mosaics(places, ids, [ids[:0]] * len(sizes))
    if len(mosaics) != 1:
        raise UnsupportedModelError(
            f"prunetune: vLLM put {len(mosaics)} pictures where there is one; this release of vLLM "
            "is not supported"
        )
    order = mosaics[0].by_tile(list(range(len(sizes))))
    kept = [0] * len(sizes)
    for view, share in zip(order, shares([sizes[v] for v in order], count), strict=True):
        kept[view] = share
    return kept
