"""MiniCPM-V 4.6: packed pictures of any size, merged within the tower and behind it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, TappedAttention, VisionCall
from prunetune.families.base_towers import Seen, Tower, weights_passed
from prunetune.families.bases.views import merged_order
from prunetune.numerics import fitting
from prunetune.tokens import ImageGeometry, grid_geometry


class MiniCPMV46(Family):
    """``MiniCPMV4_6ForConditionalGeneration``, before Qwen3.5's language model; pictures only.

    Behind one of its layers the tower merges windows of patches, unless ``downsample_mode`` is
    ``4x``; what leaves it is merged once more. A thumbnail or a slice is one item: nothing in the
    model's inputs ties a slice to its picture.
    """

    model_type: ClassVar[str] = "minicpmv4_6"
    one_view = True

    @property
    def merge(self) -> int:
        """Side of the blocks of the tower's rows that become one token."""
        return int(self.config.merge_kernel_size[0] ** self.config.merger_times)

    @property
    def patches_per_token(self) -> int:
        """Rows of the tower's last layer that are merged into one visual token."""
        return self.merge**2

    def window(self, arguments: Any) -> int:
        """Return the side of the windows that are merged within the tower; 1: none are."""
        mode = arguments.get("downsample_mode") or self.config.downsample_mode
        vision = self.config.vision_config
        return (
            1 if mode == "4x" or vision.insert_layer_id < 0 else int(vision.window_kernel_size[0])
        )

    def patches(self, call: VisionCall) -> list[tuple[int, int]]:
        """Return (rows, columns) of patches of every item."""
        return [(int(h), int(w)) for h, w in call.arguments["target_sizes"].tolist()]

    def grids(self, call: VisionCall) -> list[tuple[int, int]]:
        """Return (rows, columns) of what leaves the tower's last layer, of every item."""
        side = self.window(call.arguments)
        return [(h // side, w // side) for h, w in self.patches(call)]

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The merged grid, row by row."""
        return [grid_geometry(h // self.merge, w // self.merge) for h, w in self.grids(call)]

    def views(self, call: VisionCall) -> list[int]:
        """One view an item."""
        return [1] * len(self.patches(call))

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Each item put together again from its patches, which stand side by side."""
        packed: Tensor = call.arguments["pixel_values"][0]
        side, grids, made = packed.shape[1], self.patches(call), []
        for part, (h, w) in zip(torch.split(packed, [h * w * side for h, w in grids], 2), grids):
            cells = part.view(-1, side, h, w, side).transpose(1, 2)
            made.append(cells.reshape(1, -1, h * side, w * side))
        return made

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer, if nothing is merged behind it but in the projector."""
        layers, at = self.tower_layers(), int(self.config.vision_config.insert_layer_id)
        module: nn.Module = layers[-1].self_attn
        return module if at < len(layers) - 1 else None

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Split the one packed sequence of all items, rows of a token side by side."""
        module, grids = tapped.module, self.grids(call)
        states = torch.split(fitting(tapped.states, module.q_proj)[0], [h * w for h, w in grids])
        for own, (h, w) in zip(states, grids, strict=True):
            order = merged_order(h, w, self.merge).to(own.device)
            query, key = (
                project(own[order]).view(1, h * w, -1, int(module.head_dim)).transpose(1, 2).float()
                for project in (module.q_proj, module.k_proj)
            )
            yield query * float(module.scaling), key

    # -- what the tower costs ----------------------------------------------------------------

    def projectors(self) -> list[nn.Module]:
        """Return what merges the tower's rows."""
        base: Any = self.base
        return [base.merger]

    def tower_shape(self) -> Tower:
        """Layers up to the merging are counted with the patch, those behind it with the row."""
        shape, side = super().tower_shape(), self.window({})
        rounds = self.config.merge_kernel_size
        # Each round projects a block of what the round before left.
        cells = int(rounds[0]) * int(rounds[1])
        *earlier, last = self.base.merger.mlp  # type: ignore[union-attr,misc]
        token = weights_passed(last)
        for distance, one in enumerate(reversed(earlier), start=1):
            token += cells**distance * weights_passed(one)
        shape = replace(shape, token=token)
        if side == 1:
            return shape
        first = int(self.config.vision_config.insert_layer_id) + 1
        layers, merger = list(self.tower_layers()), self.tower.vit_merger
        width = merger.embed_dim
        before = sum(map(weights_passed, layers[:first]))
        inside = weights_passed(merger.self_attn) + 2.0 * width * side**2
        inside += (weights_passed(merger.linear_1) + weights_passed(merger.linear_2)) / side**2
        return replace(
            shape,
            patch=shape.patch + before + inside,
            row=shape.row - before,
            whole=float(width * (len(layers) - first)),
            within=float(width * first),
        )

    def looked(self, call: VisionCall) -> Seen:
        """Every item is a sequence of its own; pairs of unmerged patches are counted apart."""
        patches = [h * w for h, w in self.patches(call)]
        rows = [h * w for h, w in self.grids(call)]
        return Seen(
            patches=float(sum(patches)),
            rows=float(sum(rows)),
            tokens=sum(rows) / self.patches_per_token,
            pairs=float(sum(n**2 for n in rows)),
            window_pairs=float(sum(n**2 for n in patches)),
        )
