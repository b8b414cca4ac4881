"""LFM2-VL: pictures of any size, before layers most of which are short convolutions."""

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from prunetune.families.base import Family, TappedAttention, VisionCall
from prunetune.families.base_towers import Seen
from prunetune.families.bases.views import from_padded, merged_order
from prunetune.tokens import ImageGeometry, grid_geometry


class Lfm2Vl(Family):
    """``Lfm2VlForConditionalGeneration``: a tile, a thumbnail or a small picture is one item.

    Nothing in the model's inputs ties a tile to its picture, so each has its own share. The
    processor pads the patches of all to one length; SigLIP 2 sees whole tiles only.
    """

    model_type: ClassVar[str] = "lfm2_vl"
    one_view = True

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        found: nn.Module = self.text_model.embedding_norm
        return found

    def second_norm(self, layer: int) -> nn.Module:
        """The norm before the MLP."""
        block: Any = self.layers[layer]
        norm: nn.Module = block.ffn_norm
        return norm

    @property
    def patches_per_token(self) -> int:
        """Patches of a merged block."""
        return int(self.config.downsample_factor) ** 2

    def grids(self, call: VisionCall) -> list[tuple[int, int]]:
        """Return (rows, columns) of patches of every item."""
        shapes: Tensor = call.arguments["spatial_shapes"]
        return [(int(rows), int(cols)) for rows, cols in shapes.tolist()]

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The merged grid, row by row."""
        merge = int(self.config.downsample_factor)
        return [grid_geometry(rows // merge, cols // merge) for rows, cols in self.grids(call)]

    def views(self, call: VisionCall) -> list[int]:
        """One view an item."""
        return [1] * len(self.grids(call))

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Each item put together again from its patches, whose channels come last."""
        side = int(self.config.vision_config.patch_size)
        return from_padded(call.arguments["pixel_values"], self.grids(call), side)

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer: its output, normed, are the features."""
        module: nn.Module = self.tower_layers()[-1].self_attn
        return module

    def looked(self, call: VisionCall) -> Seen:
        """Every item is padded to the longest of its call."""
        counts = [rows * cols for rows, cols in self.grids(call)]
        length = int(call.arguments["pixel_values"].shape[1])
        return Seen(
            patches=float(len(counts) * length),
            rows=float(len(counts) * length),
            tokens=len(counts) * length / self.patches_per_token,
            pairs=float(len(counts) * length**2),
        )

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Leave padding out; patches of one token side by side."""
        merge = int(self.config.downsample_factor)
        heads = super().vision_heads(tapped, call, first_only=False)
        for (query, key), (rows, cols) in zip(heads, self.grids(call), strict=True):
            # What a block lacks at the edge is in no token, and merged_order takes whole ones.
            order = merged_order(rows, cols, merge).to(query.device)
            yield query[:, :, order], key[:, :, order]
