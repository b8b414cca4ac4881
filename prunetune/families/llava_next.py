"""LLaVA-NeXT: a thumbnail, then the any-resolution tiles' rows, unpadded, a newline after each."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import (
    Family,
    VisionCall,
    as_sizes,
    clip_has_cls,
    clip_like_attention,
    grid_side,
    refuse,
)
from prunetune.tokens import ImageGeometry


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``.

    The geometry is not re-implemented: the model's own ``pack_image_features`` is run on patch
    numbers instead of features, with a marker as the newline, so it is exact by construction.
    """

    model_type: ClassVar[str] = "llava_next"
    has_separators: ClassVar[bool] = True

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """Pack patch numbers as the model packs features."""
        rows, cols = grid_side(self.config)
        sizes = as_sizes(call.arguments["image_sizes"])
        result = [
            self._geometry(size, views, rows, cols)
            for size, views in zip(sizes, self.views(call), strict=True)
        ]
        for geometry, length in zip(result, call.lengths, strict=True):
            if len(geometry) != length:
                raise refuse(
                    self.model,
                    f"an image takes {length} tokens where its packing has {len(geometry)}",
                )
        return result

    def _geometry(self, size: tuple[int, int], views: int, rows: int, cols: int) -> ImageGeometry:
        n = rows * cols
        # float64 holds every patch number exactly; the marker can't collide with one.
        numbers = torch.arange(views * n, dtype=torch.float64).reshape(views, n, 1)
        base: Any = self.base
        packed, _ = base.pack_image_features(
            [numbers],
            torch.tensor([size]),
            vision_feature_select_strategy="full",
            image_newline=torch.full((1,), -1.0, dtype=torch.float64),
        )
        number = packed[0].flatten().round().long()
        separator = number < 0
        number = _fill_from_left(number)
        tile, inside = number // n, number % n
        geometry = ImageGeometry(
            tile=tile,
            row=inside // cols,
            col=inside % cols,
            tile_rows=torch.full_like(tile, rows),
            tile_cols=torch.full_like(tile, cols),
            y=torch.zeros(len(tile)),
            x=torch.zeros(len(tile)),
            height=torch.zeros(len(tile)),
            width=torch.zeros(len(tile)),
            separator=separator,
        )
        _place(geometry, self._grid_columns(size), rows, cols)
        return geometry

    def _grid_columns(self, size: tuple[int, int]) -> int:
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        _, columns = get_anyres_image_grid_shape(
            size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )
        return int(columns)

    def views(self, call: VisionCall) -> list[int]:
        """Thumbnail and tiles, from the image's size and the pinpoints."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        return [
            int(
                image_size_to_num_patches(
                    image_size=list(size),
                    grid_pinpoints=self.config.image_grid_pinpoints,
                    patch_size=self.config.vision_config.image_size,
                )
            )
            for size in as_sizes(call.arguments["image_sizes"])
        ]

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Thumbnail and tiles of each image, without the batch's padding."""
        values: Tensor = call.arguments["pixel_values"]
        views = self.views(call)
        if values.dim() == 5:
            return [image[:n] for image, n in zip(values, views, strict=True)]
        return list(torch.split(values, views))

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the feature layer."""
        return clip_like_attention(self)

    def vision_has_cls(self) -> bool:
        """CLIP has a CLS token, SigLIP has none."""
        return clip_has_cls(self)


def _fill_from_left(number: Tensor) -> Tensor:
    """Give a separator the patch number of the token before it (or after it, at the start)."""
    position = torch.arange(len(number))
    last = torch.where(number >= 0, position, torch.full_like(position, -1)).cummax(0).values
    first = int((number >= 0).nonzero()[0])
    return number[last.clamp_min(first)]


def _place(geometry: ImageGeometry, columns: int, rows: int, cols: int) -> None:
    """Fill in y, x, height and width: thumbnail over the picture, tiles over its unpadded part."""
    thumbnail = geometry.tile == 0
    mosaic_row = (geometry.tile - 1).clamp_min(0) // columns * rows + geometry.row
    mosaic_col = (geometry.tile - 1).clamp_min(0) % columns * cols + geometry.col
    patches = ~thumbnail & ~geometry.separator
    for name, size, row, mosaic, n in (
        ("y", "height", geometry.row, mosaic_row, rows),
        ("x", "width", geometry.col, mosaic_col, cols),
    ):
        low = int(mosaic[patches].min()) if bool(patches.any()) else 0
        span = int(mosaic[patches].max()) - low + 1 if bool(patches.any()) else 1
        getattr(geometry, name).copy_(
            torch.where(thumbnail, (row + 0.5) / n, (mosaic - low + 0.5) / span)
        )
        getattr(geometry, size).copy_(
            torch.where(thumbnail, torch.tensor(1.0 / n), torch.tensor(1.0 / span))
        )
