"""Kimi K2.5: a packed tower for pictures of any size, before a decoder of latent attention."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, TappedAttention, VisionCall, refuse
from prunetune.families.base_towers import Seen
from prunetune.families.bases.views import merged_order
from prunetune.numerics import fitting
from prunetune.tokens import ImageGeometry, grid_geometry


class KimiK25(Family):
    """``Kimi_K25ForConditionalGeneration`` (MoonViT, DeepSeek-V3's decoder); pictures only.

    The decoder caches latents, not keys: what reads queries and keys of a layer is refused. Frames
    of a video are averaged, so that a token is of several views; videos are refused.
    """

    model_type: ClassVar[str] = "kimi_k25"
    one_view = True

    @property
    def merge(self) -> int:
        """Side of the blocks of patches that become one token."""
        return int(self.config.vision_config.merge_kernel_size[0])

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
        """Each picture put together again from its patches, which come row by row."""
        values: Tensor = call.arguments["pixel_values"]
        grids, side, made = self.grids(call), values.shape[-1], []
        for part, (h, w) in zip(torch.split(values, [h * w for h, w in grids]), grids, strict=True):
            cells = part.view(h, w, -1, side, side).permute(2, 0, 3, 1, 4)
            made.append(cells.reshape(1, -1, h * side, w * side))
        return made

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return self.tower.layers

    def projectors(self) -> list[nn.Module]:
        """Return what turns the tower's rows into tokens."""
        base: Any = self.base
        return [base.mm_projector]

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer: its output are the features."""
        module: nn.Module = self.tower_layers()[-1].attn
        return module

    def looked(self, call: VisionCall) -> Seen:
        """Every picture is a sequence of its own."""
        counts = [float(h * w) for h, w in self.grids(call)]
        patches = sum(counts)
        return Seen(
            patches=patches,
            rows=patches,
            tokens=patches / self.patches_per_token,
            pairs=sum(n**2 for n in counts),
        )

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Split the one packed sequence of all pictures, patches of a token side by side."""
        from transformers.models.kimi_k25.modeling_kimi_k25 import apply_rotary_pos_emb_vision

        module, grids = tapped.module, self.grids(call)
        sizes = [h * w for h, w in grids]
        cos, sin = (torch.split(part, sizes) for part in tapped.arguments["position_embeddings"])
        states = torch.split(fitting(tapped.states, module.q_proj), sizes)
        for (h, w), own, c, s in zip(grids, states, cos, sin, strict=True):
            query, key = (
                project(own).view(1, h * w, -1, int(module.head_dim))
                for project in (module.q_proj, module.k_proj)
            )
            order = merged_order(h, w, self.merge).to(query.device)
            query, key = (
                part[:, order].transpose(1, 2).float()
                for part in apply_rotary_pos_emb_vision(query, key, c, s)
            )
            yield query * float(module.scaling), key
