"""Removing duplicates."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.selectors.base import SelectContext, Selector
from prunetune.selectors.base_similarity import falling


class Distinct(Selector):
    """VisPruner, arXiv 2412.01818 (ICCV 2025), section 3.3: what is left without duplicates.

    The patches stand in a row by falling score. Again and again every second one is compared
    with all those between, and the ``step`` of them that have the nearest twin there leave; the
    others of them move to the front, nearest first. Not nested.

    Attributes:
        step: Patches that leave at a time, 8 in the release.
        centred: Take the image's mean off the states first (the release does not).
    """

    summary: ClassVar[str] = "duplicates removed, pair by pair (VisPruner)"
    nested: ClassVar[bool] = False

    name: Literal["distinct"] = "distinct"
    step: int = Field(default=8, ge=1, le=4096)
    centred: bool = False

    def choose(self, ctx: SelectContext, count: int) -> Tensor:
        """Return the positions as they stand at the end, ``[count]`` int64."""
        similarity = ctx.cosines(centred=self.centred)
        row = falling(ctx.scores)
        while len(row) > count:
            some, others = row[::2], row[1::2]
            leave = min(self.step, len(row) - count, len(others))
            twin = similarity[some[:, None], others].amax(1)
            ranked = torch.argsort(twin, descending=True, stable=True)
            row = torch.cat([some[ranked[leave:]], others])
        return row
