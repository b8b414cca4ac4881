"""Any-resolution images: a thumbnail, then the tiles' rows, unpadded, a newline after each."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, VisionCall, refuse
from prunetune.families.base_configs import as_sizes, grid_side
from prunetune.families.bases.clip import clip_has_cls, clip_like_attention
from prunetune.tokens import ImageGeometry, frames_geometry


class AnyResolution(Family):
    """Base of the LLaVA-NeXT lineage.

    The geometry is not re-implemented: the model's own ``pack_image_features`` is run on the
    patches' coordinates instead of features, with a marker as the newline, so it is exact by
    construction. A token that was interpolated from several patches has the place that its
    coordinates say, the tile, row and column of the patch there, and how far from it it lies.
    """

    has_separators: ClassVar[bool] = True
    resizing = "tiles"

    def view_grid(self) -> tuple[int, int]:
        """Return (rows, columns) of the tokens that a view has before it is packed."""
        return grid_side(self.config)

    def pack(self, coordinates: Tensor, size: tuple[int, int], call: VisionCall | None) -> Tensor:
        """Return ``[tokens, 3]`` coordinates of one image, -1 at newlines.

        The default fits families in which every token is one patch or a newline.

        Args:
            coordinates: ``[views, patches, 3]`` float64.
            size: Height and width of the picture in pixels.
            call: The encoder call; None: as if no limit on the number of tokens were set.
        """
        base: Any = self.base
        packed, _ = base.pack_image_features(
            [coordinates],
            torch.tensor([size], device="cpu"),
            vision_feature_select_strategy="full",
            image_newline=marker(coordinates),
        )
        tokens: Tensor = packed[0]
        return tokens

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """Pack coordinates as the model packs features; a video is frame by frame."""
        if call.modality == "video":
            result = self.video_geometries(call)
        else:
            sizes, views = as_sizes(call.arguments["image_sizes"]), self.views(call)
            result = [self._geometry(s, n, call) for s, n in zip(sizes, views, strict=True)]
        for geometry, length in zip(result, call.lengths, strict=True):
            if len(geometry) != length:
                raise refuse(
                    self.model,
                    f"one {call.modality} takes {length} tokens where its packing has "
                    f"{len(geometry)}",
                )
        return result

    def video_geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The pooled grid of every frame."""
        rows, cols = self.video_grid()
        return [frames_geometry(frames, rows, cols) for frames in self.views(call)]

    def video_grid(self) -> tuple[int, int]:
        """Return (rows, columns) of a frame's tokens, where the family takes videos."""
        raise NotImplementedError

    def _geometry(self, size: tuple[int, int], views: int, call: VisionCall) -> ImageGeometry:
        rows, cols = self.view_grid()
        across = self._tiles_across(size) if views > 1 else 1
        patches = _coordinates(views, rows, cols, across)
        # Interpolating leaves noise in the last digits, on which side of a half must not depend.
        packed = self._packed(patches, size, call).round(decimals=6)
        separator = packed[:, 0] < 0
        tiled, down, right = packed[_token_before(separator)].unbind(1)
        nearest_down, nearest_right = down.round().long(), right.round().long()
        mosaic = nearest_down // rows * across + nearest_right // cols
        geometry = ImageGeometry(
            tile=torch.where(tiled > 0, 1 + mosaic, 0),
            row=nearest_down % rows,
            col=nearest_right % cols,
            tile_rows=torch.full_like(mosaic, rows),
            tile_cols=torch.full_like(mosaic, cols),
            y=((down + 0.5) / rows).float(),
            x=((right + 0.5) / cols).float(),
            height=torch.full((len(mosaic),), 1.0 / rows, dtype=torch.float32, device="cpu"),
            width=torch.full((len(mosaic),), 1.0 / cols, dtype=torch.float32, device="cpu"),
            separator=separator,
            row_off=(down - nearest_down).float(),
            col_off=(right - nearest_right).float(),
            across=torch.full_like(mosaic, across),
        )
        if views > 1:
            whole = self._packed(patches, size, None)
            _place(geometry, tiled > 0, (down, right), whole[whole[:, 0] > 0])
        return geometry

    def _packed(self, patches: Tensor, size: tuple[int, int], call: VisionCall | None) -> Tensor:
        # What transformers makes on the way must not land on the process's default device.
        with torch.device("cpu"):
            return self.pack(patches, size, call)

    def _tiles_across(self, size: tuple[int, int]) -> int:
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        _, columns = get_anyres_image_grid_shape(
            size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )
        return int(columns)

    def views(self, call: VisionCall) -> list[int]:
        """Thumbnail and tiles, from the image's size and the pinpoints; a video's frames."""
        if call.modality == "video":
            return [len(video) for video in video_pixels(call.arguments)]
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
        """Thumbnail and tiles of each image, without the batch's padding; a video's frames."""
        if call.modality == "video":
            return list(video_pixels(call.arguments))
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


def video_pixels(arguments: Mapping[str, Any]) -> Tensor:
    """Return what a video encoder was given, ``[videos, frames, 3, height, width]``."""
    # Before transformers 5.23 some methods call it pixel_values.
    name = "pixel_values_videos" if "pixel_values_videos" in arguments else "pixel_values"
    values: Tensor = arguments[name]
    return values


@cache
def pooling_matrix(rows: int, cols: int, mode: str, out: tuple[int, int]) -> Tensor:
    """Return a spatial pooling as a matrix, ``[tokens, patches]`` float32.

    Args:
        rows: Of the tower's grid.
        cols: Of the tower's grid.
        mode: ``bilinear``, or ``average`` over blocks without overlap.
        out: Rows and columns of the pooled grid.
    """
    one_hot = torch.eye(rows * cols, dtype=torch.float32, device="cpu").view(
        rows * cols, 1, rows, cols
    )
    if mode == "bilinear":
        pooled = nn.functional.interpolate(one_hot, size=out, mode="bilinear")
    else:
        pooled = nn.functional.avg_pool2d(one_hot, (rows // out[0], cols // out[1]))
    return pooled.flatten(1).T.contiguous()


@cache
def _coordinates(views: int, rows: int, cols: int, across: int) -> Tensor:
    """Return (0 thumbnail or 1 tile, row, column in the mosaic), ``[views, patches, 3]``."""
    row, col = torch.meshgrid(
        torch.arange(rows, device="cpu"), torch.arange(cols, device="cpu"), indexing="ij"
    )
    view = torch.arange(views, device="cpu")[:, None]
    mosaic = (view - 1).clamp_min(0)
    # float64 holds every coordinate exactly; -1, the marker, can't collide with one.
    return torch.stack(
        [
            view.clamp_max(1).expand(-1, rows * cols),
            row.flatten() + mosaic // across * rows,
            col.flatten() + mosaic % across * cols,
        ],
        dim=2,
    ).double()


def marker(like: Tensor) -> Tensor:
    """Return a newline that ``pack_image_features`` puts among coordinates."""
    return torch.full((like.shape[-1],), -1.0, dtype=like.dtype, device=like.device)


def _token_before(separator: Tensor) -> Tensor:
    """Return for each token its own position, for a separator that of the patch before it."""
    position = torch.arange(len(separator), device=separator.device)
    last = torch.where(separator, torch.full_like(position, -1), position).cummax(0).values
    return last.clamp_min(int((~separator).nonzero()[0]))


def _place(
    geometry: ImageGeometry, tiled: Tensor, packed: tuple[Tensor, Tensor], whole: Tensor
) -> None:
    """Fill in y, x, height and width of the tiles' tokens: over the unpadded part of the mosaic."""
    patches = tiled & ~geometry.separator
    if not bool(patches.any()):
        # Of a picture far wider than high (or higher than wide) unpadding leaves nothing.
        return
    for axis, (name, size) in enumerate((("y", "height"), ("x", "width"))):
        seen = whole[:, 1 + axis]
        low, span = float(seen.min()), float(seen.max() - seen.min()) + 1
        place = ((packed[axis] - low + 0.5) / span).float()
        share = 1.0 / len(torch.unique(packed[axis][patches]))
        getattr(geometry, name).copy_(torch.where(tiled, place, getattr(geometry, name)))
        getattr(geometry, size).copy_(torch.where(tiled, share, getattr(geometry, size)))
