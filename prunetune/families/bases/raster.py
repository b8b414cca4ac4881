"""Towers of packed pictures whose patches come row by row, and are merged behind the tower."""

import sys
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from prunetune.families.base import Family, TappedAttention, VisionCall, refuse
from prunetune.families.base_towers import Seen
from prunetune.families.bases.views import merged_order
from prunetune.numerics import fitting
from prunetune.tokens import ImageGeometry, grid_geometry


class RasterPatches(Family):
    """Base of Kimi K2.5 and PaddleOCR-VL; pictures only.

    ``pixel_values`` is ``[patches, 3, side, side]`` of all pictures, ``image_grid_thw`` says how
    many rows and columns each has.
    """

    one_view: ClassVar[bool] = True

    @property
    def merge(self) -> int:
        """Side of the blocks of patches that become one token."""
        raise NotImplementedError

    @property
    def patches_per_token(self) -> int:
        """Patches of a merged block."""
        return self.merge**2

    def grids(self, call: VisionCall) -> list[tuple[int, int]]:
        """Return (rows, columns) of patches of every picture."""
        grids = call.arguments["image_grid_thw"].tolist()
        if any(int(frames) != 1 for frames, _, _ in grids):
            raise refuse(self.model, "one of its pictures has several frames: pass pictures only")
        return [(int(rows), int(cols)) for _, rows, cols in grids]

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The merged grid, row by row."""
        return [grid_geometry(h // self.merge, w // self.merge) for h, w in self.grids(call)]

    def views(self, call: VisionCall) -> list[int]:
        """One view a picture."""
        return [1] * len(call.arguments["image_grid_thw"])

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Each picture put together again from its patches."""
        values: Tensor = call.arguments["pixel_values"]
        grids, side, made = self.grids(call), values.shape[-1], []
        for part, (h, w) in zip(torch.split(values, _sizes(grids)), grids, strict=True):
            cells = part.view(h, w, -1, side, side).permute(2, 0, 3, 1, 4)
            made.append(cells.reshape(1, -1, h * side, w * side))
        return made

    def looked(self, call: VisionCall) -> Seen:
        """Every picture is a sequence of its own."""
        counts = _sizes(self.grids(call))
        patches = float(sum(counts))
        return Seen(
            patches=patches,
            rows=patches,
            tokens=patches / self.patches_per_token,
            pairs=float(sum(n**2 for n in counts)),
        )

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Split the one packed sequence of all pictures, patches of a token side by side."""
        module, grids = tapped.module, self.grids(call)
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb_vision
        sizes = _sizes(grids)
        cos, sin = (torch.split(part, sizes) for part in tapped.arguments["position_embeddings"])
        states = torch.split(fitting(tapped.states, module.q_proj), sizes)
        for (h, w), own, c, s in zip(grids, states, cos, sin, strict=True):
            query, key = (
                project(own).view(1, h * w, -1, int(module.head_dim))
                for project in (module.q_proj, module.k_proj)
            )
            order = merged_order(h, w, self.merge).to(query.device)
            query, key = (
                part[:, order].transpose(1, 2).float() for part in rotate(query, key, c, s)
            )
            yield query * float(module.scaling), key


def _sizes(grids: list[tuple[int, int]]) -> list[int]:
    return [rows * cols for rows, cols in grids]
