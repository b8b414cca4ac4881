"""Molmo 2: a thumbnail and overlapping crops, pooled across their edges; images see one another."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, VisionCall, refuse
from prunetune.families.base_towers import Seen, Tower
from prunetune.release import cache_of
from prunetune.tokens import ImageGeometry, Mosaic, grid_geometry


class Molmo2(Family):
    """``Molmo2ForConditionalGeneration``; pictures only: videos have the same placeholder.

    A picture is a pooled grid of its thumbnail and one of all crops stitched together, whose tokens
    take patches of several crops: a token has the sum of what they receive, each in its own crop.
    All tokens of images, rows' ends and markers included, attend to one another.
    """

    model_type: ClassVar[str] = "molmo2"
    tokens_of_views: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse the norms of Molmo 2-O's language model."""
        text = self.config.text_config
        if text.norm_after:
            raise refuse(self.model, "norms stand behind attention and MLP (norm_after)")
        if text.qk_norm_type != "qwen3":
            raise refuse(self.model, "queries are normalised over all heads (qk_norm_type)")

    def layer_kind(self, layer: int) -> str:
        """Whether its rotation is scaled."""
        return str(self.text_model.rope_types[layer])

    def rotary(self, layer: int, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Some layers turn at the unscaled speed."""
        text = self.text_model
        scaled = self.layer_kind(layer) == "scaled"
        found: tuple[Tensor, ...] = (text.rotary_emb if scaled else text.rotary_emb_unscaled)(
            hidden, position_ids=position_ids
        )
        return found

    def blocks(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """All images of a prompt are one block, where the caller passes ``mm_token_type_ids``."""
        cache = cache_of(arguments)
        if cache is not None and int(cache.get_seq_length()):
            raise refuse(
                self.model,
                "a later turn brings images, but all images of a conversation attend to one "
                "another: what is cached cannot attend to them; start a new prompt",
            )
        kinds: Tensor | None = arguments.get("mm_token_type_ids")
        return None if kinds is None else torch.where(kinds == 1, 0, -1)

    def grids(self, call: VisionCall) -> list[tuple[int, ...]]:
        """Return (rows, columns) of tokens of the thumbnail and of the stitched crops."""
        return [tuple(map(int, grid)) for grid in call.arguments["image_grids"].tolist()]

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The thumbnail's grid, then that of the whole picture at its own size."""
        both = Mosaic(thumbnail_first=True)
        return [
            both.geometry([grid_geometry(rows, cols), grid_geometry(down, across)])
            for rows, cols, down, across in self.grids(call)
        ]

    def views(self, call: VisionCall) -> list[int]:
        """Thumbnail and crops, by the first patch of each picture."""
        starts = self._starts(call)
        ends = [*starts[1:], self._crops(call).shape[0]]
        return [end - start for start, end in zip(starts, ends)]

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """The thumbnail, put together from its patches, whose channels come last."""
        side, patch = int(self._crops(call).shape[1] ** 0.5), int(self.tower.config.patch_size)
        cells = self._crops(call)[self._starts(call)].view(-1, side, side, patch, patch, 3)
        whole = cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, side * patch, side * patch)
        return list(whole[:, None])

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer that features are taken of."""
        depth = len(self.tower_layers())
        taken = [layer % depth for layer in self.config.adapter_config.vision_feature_layer]
        module: nn.Module = self.tower_layers()[max(taken)].self_attn
        return module

    def taken(self, call: VisionCall) -> list[Tensor] | None:
        """The patches that the adapter pools, counted from each picture's first."""
        pooled = self._pooled(call)
        counts = [r * c + d * a for r, c, d, a in self.grids(call)]
        firsts = [start * self._crops(call).shape[1] for start in self._starts(call)]
        parts = zip(torch.split(pooled, counts), firsts, strict=True)
        return [torch.where(part < 0, part, part - first) for part, first in parts]

    def _pooled(self, call: VisionCall) -> Tensor:
        """Return the patches of each token of all pictures, -1 beyond edges."""
        pooled: Tensor = call.arguments["image_token_pooling"]
        return pooled[(pooled >= 0).any(1)]

    def _crops(self, call: VisionCall) -> Tensor:
        """Return the patches of all views, ``[views, patches, values]``."""
        values: Tensor = call.arguments["pixel_values"]
        return values.flatten(0, -3)

    def _starts(self, call: VisionCall) -> list[int]:
        """Return each picture's first view: that of the first patch that it pools."""
        pooled = self._pooled(call)
        lengths = torch.tensor([r * c + d * a for r, c, d, a in self.grids(call)], device="cpu")
        first = pooled[(lengths.cumsum(0) - lengths).to(pooled.device)]
        firsts = first.masked_fill(first < 0, int(pooled.max())).amin(1)
        return [int(n) // self._crops(call).shape[1] for n in firsts.tolist()]

    # -- what the tower costs ----------------------------------------------------------------

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return self.tower.layers

    def tower_shape(self) -> Tower:
        """Keys and values are made of every patch that a token pools."""
        shape = super().tower_shape()
        pool: Any = self.base.multi_modal_projector.image_pooling_2d  # type: ignore[union-attr]
        pairs = pool.k_proj.weight.numel() + pool.v_proj.weight.numel()
        # A pair of a token and a patch costs twice what stands here: key and value, made and used.
        within = pairs / 2 + pool.q_proj.out_features
        return replace(shape, token=shape.token - pairs, within=within)

    def looked(self, call: VisionCall) -> Seen:
        """Every view is a sequence; rows that pool nothing are projected all the same."""
        views, patches, _ = self._crops(call).shape
        pooled = call.arguments["image_token_pooling"]
        return Seen(
            patches=float(views * patches),
            rows=float(views * patches),
            tokens=float(len(pooled)),
            pairs=float(views * patches**2),
            window_pairs=float(pooled.numel()),
        )
