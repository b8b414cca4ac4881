"""Shares of the count, each filled by its own scores and selector."""

from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from prunetune.selectors.base import SelectContext, SelectNeed, Selector
from prunetune.selectors.base_parts import Part

# Shares are written by hand: three of 0.333 are meant to be the whole.
_ROUNDED = 2e-3


def _visionzip() -> tuple[Part, ...]:
    spread = {"name": "spread"}
    return Part(share=54 / 64), Part.model_validate({"share": 10 / 64, "selector": spread})


class Quota(Selector):
    """Shares of the count, each chosen by its own part among what the parts before it left.

    VisionZip (arXiv 2412.04467): 54 of 64 by CLS attention, 10 spread over the rest. VisPruner
    (arXiv 2412.01818): half by CLS attention, half of the rest without duplicates. The first
    parts get ``floor(count * (share_1 + .. + share_p))`` patches together, the last all others.
    Not nested.

    Attributes:
        parts: In the order in which they choose; their shares add up to 1.
    """

    summary: ClassVar[str] = "shares, each by its own scores and selector"
    nested: ClassVar[bool] = False
    pairwise: ClassVar[bool] = False

    name: Literal["quota"] = "quota"
    parts: tuple[Part, ...] = Field(
        default_factory=_visionzip,
        min_length=1,
        max_length=8,
    )

    @field_validator("parts")
    @classmethod
    def _whole(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        total = sum(part.share for part in parts)
        if abs(total - 1.0) > _ROUNDED:
            shares = " + ".join(f"{part.share:g}" for part in parts)
            raise ValueError(f"received shares {shares} = {total:g}, allowed shares that add to 1")
        return parts

    @property
    def needs(self) -> frozenset[SelectNeed]:
        """What its parts need."""
        return frozenset[SelectNeed]().union(*(part.selector.needs for part in self.parts))

    @property
    def uses_scorers(self) -> frozenset[str]:
        """Names of the stage's scorers that a part weighs by itself."""
        return frozenset(scorer.name for part in self.parts for scorer in part.scorers)

    @property
    def centring(self) -> bool:
        """Whether a part compares states after the image's mean was taken off."""
        return any(part.selector.centring for part in self.parts)

    def counts(self, count: int) -> list[int]:
        """Return how many patches each part gets; their sum is ``count``."""
        total, so_far, ends = sum(part.share for part in self.parts), 0.0, [0]
        for part in self.parts:
            so_far += part.share / total
            # Shares of 0.1 add up to a little less than they should.
            ends.append(int(count * so_far + 1e-6))
        ends[-1] = count
        return [after - before for before, after in pairwise(ends)]

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the parts' choices one after another, ``[count]`` int64."""
        left = torch.arange(len(ctx), dtype=torch.int64, device=ctx.device)
        taken: list[Tensor] = []
        for part, many in zip(self.parts, self.counts(count)):
            rest = _scored(ctx, part).select(left)
            order = part.selector.order(rest, many)
            taken.append(left[order])
            stays = torch.ones(len(left), dtype=torch.bool, device=ctx.device)
            stays[order] = False
            # Sorted by "is taken", stable: which are left is known without asking the device.
            left = left[torch.argsort(~stays, stable=True)[: len(left) - many]]
        return torch.cat(taken)


def _scored(ctx: SelectContext, part: Part) -> SelectContext:
    """Return the context with the part's own scores."""
    if not part.scorers:
        return ctx
    total = torch.zeros_like(ctx.scores)
    for scorer in part.scorers:
        score = ctx.importances.get(scorer.name)
        if score is None:
            known = ", ".join(sorted(ctx.importances)) or "none"
            raise ValueError(
                f"SelectContext.importances: a quota asks for scorer {scorer.name!r}; "
                f"the stage has: {known}"
            )
        total.add_(score, alpha=scorer.weight)
    return replace(ctx, scores=total)
