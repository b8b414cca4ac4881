"""Qwen2.5-VL: as Qwen2-VL, with a tower that attends within windows but for a few blocks."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base_calls import VisionCall
from prunetune.families.base_towers import Seen, window_pairs
from prunetune.families.bases.qwen import QwenVL


class Qwen25VL(QwenVL):
    """``Qwen2_5_VLForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen2_5_vl"

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last block that sees whole frames (in released models the last).

        Inside a window probabilities would be shares of the window, not of the picture.
        """
        full = [int(k) for k in self.config.vision_config.fullatt_block_indexes]
        base: Any = self.base
        blocks = base.visual.blocks
        within = [k for k in full if k < len(blocks)]
        return blocks[max(within)].attn if within else None

    def windowed_layers(self) -> frozenset[int]:
        """All blocks but those that see whole frames."""
        full = {int(k) for k in self.config.vision_config.fullatt_block_indexes}
        return frozenset(range(len(self.tower_layers()))) - full

    def looked(self, call: VisionCall) -> Seen:
        """Windows are cut at the edges of a frame."""
        vision, cell = self.config.vision_config, self.patches_per_token
        side = int(vision.window_size) // self._merge // int(vision.patch_size)
        pairs = sum(
            t * window_pairs(h // self._merge, w // self._merge, side, cell)
            for t, h, w in self.grids(call)
        )
        return replace(super().looked(call), window_pairs=pairs)

    def _in_order(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Undo the tower's sorting of merged blocks by window."""
        from transformers.vision_utils import get_vision_window_index

        vision = self.config.vision_config
        # It makes the index on the process's default device.
        with torch.device("cpu"):
            index, _ = get_vision_window_index(
                torch.tensor([grid], device="cpu"),
                spatial_merge_size=vision.spatial_merge_size,
                window_size=vision.window_size,
                patch_size=vision.patch_size,
            )
        blocks = patches.reshape(-1, self.patches_per_token, *patches.shape[1:])
        return blocks[torch.argsort(index).to(patches.device)].flatten(0, 1)
