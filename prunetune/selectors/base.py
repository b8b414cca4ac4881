"""What a selector is, what it may look at, and how a selection is shared out among views."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.registry import Tunable
from prunetune.selectors.base_similarity import cosines, finite_rows, mean_row
from prunetune.tokens import ImageGeometry

SelectNeed = Literal["question"]
"""What a selector can ask the runtime for beside states and scores."""

Scope = Literal["image", "view"]

LARGEST = 4096
"""Patches that one n x n matrix is made for: 64 MiB of float32."""


@dataclass(frozen=True)
class SelectContext:
    """What a selector may look at: one image's patches at one stage. Must not be modified.

    ``n`` below is the number of the image's patches alive before the stage, in sequence order.

    Attributes:
        features: ``[n, d]`` of any floating dtype; states of the patches entering the stage's
            layer.
        scores: ``[n]`` float32; q, the stage's weighted sum of standardised scores.
        geometry: Of the ``n`` patches (no separators among them).
        layer: The stage's layer; 0 is before the language model.
        text: ``[t, d]`` of any floating dtype; input embeddings of the question's tokens.
        importances: Scorer name to ``[n]`` float32, its standardised score; those of the stage's
            scorers that ``Selector.uses_scorers`` names.
        mean: ``[d]`` float32; mean of the whole image's features where these are a part of it.
        known: Cosines of the whole image's features, where a caller keeps them for selections to
            come; None: nobody does.
    """

    features: Tensor
    scores: Tensor
    geometry: ImageGeometry
    layer: int = 0
    text: Tensor | None = None
    importances: Mapping[str, Tensor] = field(default_factory=dict)
    mean: Tensor | None = None
    known: MutableMapping[str, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.scores.device

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def select(self, index: Tensor) -> "SelectContext":
        """Return the context of the patches at ``index`` (``[m]`` int64), in that order."""
        return replace(
            self,
            features=self.features[index],
            scores=self.scores[index],
            geometry=self.geometry.select(index),
            importances={name: score[index] for name, score in self.importances.items()},
            known=None,
        )

    def cosines(self, *, centred: bool, out: Tensor | None = None) -> Tensor:
        """Return the cosine of every two patches, ``[n, n]`` float32, for the caller to change.

        Args:
            centred: Take the mean off first.
            out: ``[n, n]`` float32 to write to.
        """
        name = f"cosines:{self.layer}:{centred}"
        found = None if self.known is None else self.known.get(name)
        if found is not None:
            return found.clone() if out is None else out.copy_(found)
        made = cosines(self.features, self.mean if centred else None, out)
        if self.known is not None:
            self.known[name] = made.clone()
        return made


class Selector(BaseModel):
    """Base of all selectors: a frozen pydantic model whose fields are its hyperparameters.

    A subclass sets ``name`` and ``summary`` and implements ``choose``. The base class does the
    rest: it checks the count, leaves out what has no finite state, and shares the count out.

    Contract: exactly ``count`` positions, each once; equal candidates are taken by the lower
    position; a patch whose state or score is not finite is taken only when no other is left; the
    same answer whatever the defaults of the process; the context is not modified; fp32 inside; at
    most 256 MiB of scratch memory for 8,192 patches; no wait for the device in a step of a loop.

    Attributes:
        scope: ``"image"``: one selection over all views. ``"view"``: one in each view (thumbnail,
            tile or frame), which gets its share of the count in proportion to its patches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    summary: ClassVar[str] = ""
    nested: ClassVar[bool] = True
    """Whether the order of a smaller count is the beginning of that of a larger one."""
    pairwise: ClassVar[bool] = True
    """Whether patches are compared with each other: their states have to be finite, and above
    ``LARGEST`` patches there is one selection for each pack of views."""

    name: str
    scope: Annotated[
        Scope, Tunable(choices=("image", "view"), shown="one selection, or one in each view")
    ] = "image"

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return ``count`` positions, ``[count]`` int64, in the order in which they are taken.

        Args:
            ctx: What is to be selected among, of one scope; all finite where ``pairwise``.
            count: In 1 .. ``len(ctx)``.
        """
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[SelectNeed]:
        """What has to be in the context beside states and scores."""
        return frozenset()

    @property
    def uses_scorers(self) -> frozenset[str]:
        """Names of the stage's scorers whose own scores have to be in the context."""
        return frozenset()

    @property
    def ignores_scores(self) -> bool:
        """Whether the stage's scores cannot change the choice: it then needs no scorers."""
        return False

    @property
    def prompt_dependent(self) -> bool:
        """Whether another question about the same picture can change the choice by itself."""
        return "question" in self.needs

    @property
    def centring(self) -> bool:
        """Whether states are compared after the image's mean was taken off."""
        return bool(getattr(self, "centred", False))

    def keep(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the keep index, ``[count]`` int64 ascending; see ``order``."""
        return self.order(ctx, count).sort().values

    def order(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the chosen positions, ``[count]`` int64, in the order in which they are taken.

        Args:
            ctx: One image's patches.
            count: In 0 .. ``len(ctx)``.

        Raises:
            ValueError: The count is out of range, or the context lacks what the selector needs.
        """
        if not 0 <= count <= len(ctx):
            raise ValueError(f"count: received {count}, allowed 0 to {len(ctx)}")
        if "question" in self.needs and ctx.text is None:
            raise ValueError(
                f"SelectContext.text: received None, selector {self.name!r} needs a tensor"
            )
        if count == 0:
            return torch.empty(0, dtype=torch.int64, device=ctx.device)
        with exactly():
            if not self.pairwise:
                return self._shared_out(ctx, count)
            usable = finite_rows(ctx.features) & torch.isfinite(ctx.scores)
            if bool(usable.all()):
                return self._shared_out(ctx, count)
            good, bad = usable.nonzero().flatten(), (~usable).nonzero().flatten()
            some = min(count, len(good))
            if not some:
                return bad[:count]
            first = good[self._shared_out(ctx.select(good), some)]
            return torch.cat([first, bad[: count - some]])

    def _shared_out(self, ctx: SelectContext, count: int) -> Tensor:
        """Select in each group by itself; groups take turns in proportion to their sizes."""
        if self.centring and ctx.mean is None:
            whole = ctx.features
            if not self.pairwise:
                whole = whole[finite_rows(whole)]
            ctx = replace(ctx, mean=mean_row(whole))
        groups = self._groups(ctx)
        if groups is None:
            return self.choose(ctx, count)
        owner = _turns([len(group) for group in groups], count)
        parts = [
            group[self.choose(ctx.select(group), owner.count(g))]
            for g, group in enumerate(groups)
            if g in owner
        ]
        turn = torch.tensor(owner, dtype=torch.int64, device=ctx.device)
        out = torch.empty_like(turn)
        out[torch.argsort(turn, stable=True)] = torch.cat(parts)
        return out

    def _groups(self, ctx: SelectContext) -> list[Tensor] | None:
        """Return the positions of each selection of its own; None where there is only one."""
        packed = self.scope == "image"
        if packed and not (self.pairwise and len(ctx) > LARGEST):
            return None
        tile = ctx.geometry.tile
        order = torch.argsort(tile, stable=True)
        views = list(torch.split(order, [size for size in torch.bincount(tile).tolist() if size]))
        if not self.pairwise:
            return views
        views = [band for view in views for band in _bands(view)]
        if not packed:
            return views
        packs: list[list[Tensor]] = []
        for view in views:
            if packs and sum(map(len, packs[-1])) + len(view) <= LARGEST:
                packs[-1].append(view)
            else:
                packs.append([view])
        return [torch.cat(pack).sort().values for pack in packs]


def _bands(view: Tensor) -> list[Tensor]:
    """Cut a view's positions into the fewest equal bands that are small enough."""
    return list(torch.tensor_split(view, -(-len(view) // LARGEST)))


def shares(sizes: list[int], count: int) -> list[int]:
    """Return how many of ``count`` patches each view gets, where a selector has scope ``view``.

    Args:
        sizes: Patches of each view, the thumbnail's (tile 0) first; at most ``LARGEST`` each.
        count: At most their sum.
    """
    owner = _turns(sizes, count)
    return [owner.count(view) for view in range(len(sizes))]


def _turns(sizes: list[int], count: int) -> list[int]:
    """Return whose turn it is, ``count`` numbers of groups; every prefix is a fair division.

    The r-th of a group of m stands at (r + 1/2) / m (Webster's and Sainte-Lague's rule), the
    earlier group first where two stand alike.
    """
    stand = [((2 * r + 1) / size, g) for g, size in enumerate(sizes) for r in range(size)]
    return [g for _, g in sorted(stand)[:count]]
