"""Pixtral's tower: all pictures, each at its own size, in one packed sequence of patches."""

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, TappedAttention, VisionCall, refuse
from prunetune.families.base_configs import CLIP_PIXELS, as_sizes
from prunetune.families.base_towers import Seen
from prunetune.families.bases.views import merged_order
from prunetune.numerics import fitting
from prunetune.tokens import ImageGeometry, grid_geometry


class PixtralLike(Family):
    """Base of models with a Pixtral tower, ``merge`` x ``merge`` of whose patches make a token.

    A picture's rows stand apart in the prompt: behind each the processor puts a token of text.
    """

    one_view = True
    resizing: ClassVar[str] = "edge"

    @property
    def merge(self) -> int:
        """Patches along one side of what becomes one visual token."""
        return 1

    @property
    def patches_per_token(self) -> int:
        """Patches of the tower that are merged into one visual token."""
        return self.merge**2

    def grids(self, call: VisionCall) -> list[tuple[int, int]]:
        """Return (rows, columns) of patches of every picture.

        Raises:
            UnsupportedModelError: A picture is not made of whole tokens.
        """
        patch, unit = int(self.config.vision_config.patch_size), self.merge
        sizes = as_sizes(call.arguments["image_sizes"])
        for height, width in sizes:
            if height % (patch * unit) or width % (patch * unit):
                raise refuse(
                    self.model,
                    f"a picture of {height} x {width} pixels is not made of whole tokens of "
                    f"{patch * unit} pixels: pass pictures as the processor makes them",
                )
        return [(height // patch, width // patch) for height, width in sizes]

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The merged grid, row by row."""
        return [grid_geometry(h // self.merge, w // self.merge) for h, w in self.grids(call)]

    def views(self, call: VisionCall) -> list[int]:
        """One view a picture."""
        return [1] * len(as_sizes(call.arguments["image_sizes"]))

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Each picture without the batch's padding."""
        sizes = as_sizes(call.arguments["image_sizes"])
        views = zip(call.arguments["pixel_values"], sizes, strict=True)
        return [view[None, :, :height, :width] for view, (height, width) in views]

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As CLIP's."""
        return CLIP_PIXELS

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return self.tower.transformer.layers

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the layer whose output are the features; of several the last."""
        layers, layer = self.tower_layers(), self.config.vision_feature_layer
        layer = layer if isinstance(layer, int) else layer[-1]
        # hidden_states[k] is what enters layer k.
        index = layer - 1 if layer > 0 else len(layers) + layer
        module: nn.Module | None = layers[index].attention if 0 <= index < len(layers) else None
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
        module = tapped.module
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
        grids = self.grids(call)
        sizes = [h * w for h, w in grids]
        rotary = (torch.split(part, sizes) for part in tapped.arguments["position_embeddings"])
        cos, sin = rotary
        states = torch.split(fitting(tapped.states, module.q_proj)[0], sizes)
        for (h, w), own, c, s in zip(grids, states, cos, sin, strict=True):
            query, key = (
                project(own).view(1, len(own), -1, int(module.head_dim)).transpose(1, 2)
                for project in (module.q_proj, module.k_proj)
            )
            query, key = rotate(query, key, c, s, unsqueeze_dim=0)
            order = merged_order(h, w, self.merge).to(query.device)
            query, key = (part[:, :, order].float() for part in (query, key))
            yield query * float(module.scaling), key
