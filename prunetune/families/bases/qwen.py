"""What the Qwen-VL families share: every picture at its own size, patches in merged blocks."""

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, TappedAttention, VisionCall
from prunetune.families.base_configs import CLIP_PIXELS, SIGLIP_PIXELS
from prunetune.families.base_towers import Seen
from prunetune.numerics import fitting
from prunetune.tokens import ImageGeometry, frames_geometry


class QwenVL(Family):
    """Base of Qwen-VL models: a tower for grids of any size, 2 x 2 patches merged into a token.

    The processor hands over patches, not pictures: ``pixel_values`` is ``[patches, values]`` of all
    images, in blocks that become one token, and ``image_grid_thw`` says how many frames, rows and
    columns of patches each image (or video) has. Tokens are frame by frame in raster order of the
    merged grid, which are also their multimodal rotary positions. A video's frames are tiles.
    """

    can_pack: ClassVar[bool] = False
    one_view = True
    resizing = "native"
    video_encoder_method: ClassVar[str | None] = "get_video_features"

    @property
    def patches_per_token(self) -> int:
        """Patches of a merged block."""
        return self._merge**2

    @property
    def _merge(self) -> int:
        return int(self.config.vision_config.spatial_merge_size)

    def grids(self, call: VisionCall) -> list[tuple[int, int, int]]:
        """Return (frames, rows, columns) in patches of every image or video of a call."""
        arguments = call.arguments
        grid: Tensor = arguments[
            "image_grid_thw" if "pixel_values" in arguments else "video_grid_thw"
        ]
        return [(int(t), int(h), int(w)) for t, h, w in grid.tolist()]

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The merged grid, row by row; a video frame by frame."""
        return [
            frames_geometry(t, h // self._merge, w // self._merge) for t, h, w in self.grids(call)
        ]

    def views(self, call: VisionCall) -> list[int]:
        """One view an image, a video's frames (each of two pictures) apart."""
        return [frames for frames, _, _ in self.grids(call)]

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Each frame put together from its patches.

        A patch holds two moments (an image twice the same); they stand side by side, token by
        token, so that a token's cell holds all the pixels that it was made of.
        """
        video = call.modality == "video"
        values: Tensor = call.arguments["pixel_values_videos" if video else "pixel_values"]
        vision, merge = self.config.vision_config, self._merge
        size, moments = int(vision.patch_size), int(vision.temporal_patch_size)
        grids, result = self.grids(call), []
        for (t, h, w), part in zip(
            grids, torch.split(values, [t * h * w for t, h, w in grids]), strict=True
        ):
            rows, cols = h // merge, w // merge
            blocks = part.reshape(t, rows, cols, merge, merge, -1, moments, size, size)
            blocks = blocks.permute(0, 5, 1, 3, 7, 2, 6, 4, 8)
            result.append(blocks.reshape(t, -1, h * size, moments * w * size))
        return result

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Qwen2-VL and Qwen2.5-VL normalise as CLIP does."""
        return CLIP_PIXELS

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last block, whose output is merged into the features."""
        base: Any = self.base
        module: nn.Module = base.visual.blocks[-1].attn
        return module

    @property
    def tower(self) -> Any:
        """The tower; what projects is a part of it."""
        return self.base.visual

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return self.tower.blocks

    def projectors(self) -> list[nn.Module]:
        """Return the mergers: the last features', and where there are any the earlier ones'."""
        return [self.tower.merger, *getattr(self.tower, "deepstack_merger_list", ())]

    def looked(self, call: VisionCall) -> Seen:
        """Every frame is a sequence of its own."""
        frames = [(t, h * w) for t, h, w in self.grids(call)]
        patches = float(sum(t * n for t, n in frames))
        return Seen(
            patches=patches,
            rows=patches,
            tokens=patches / self.patches_per_token,
            pairs=float(sum(t * n**2 for t, n in frames)),
        )

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Split the one packed sequence of all images; patches of a token are neighbours already.

        A frame is a sequence of its own to the tower's full attention.
        """
        module = tapped.module
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb_vision
        grids = self.grids(call)
        sizes = [t * h * w for t, h, w in grids]
        cos, sin = (torch.split(part, sizes) for part in tapped.arguments["position_embeddings"])
        parts = zip(grids, torch.split(tapped.states, sizes), cos, sin, strict=True)
        for grid, states, c, s in parts:
            fused = module.qkv(fitting(states, module.qkv)).reshape(
                len(states), 3, module.num_heads, -1
            )
            query, key, _ = fused.unbind(1)
            query, key = (self._in_order(part, grid) for part in rotate(query, key, c, s))
            shape = (grid[0], grid[1] * grid[2], *query.shape[1:])
            query, key = (part.float().reshape(shape).transpose(1, 2) for part in (query, key))
            yield query * float(module.scaling), key

    def _in_order(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Return one image's ``[patches, ...]`` in the order that the processor gave them."""
        return patches


class Qwen3Tower(QwenVL):
    """Base of what has Qwen3-VL's tower."""

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As SigLIP's."""
        return SIGLIP_PIXELS
