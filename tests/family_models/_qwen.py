"""What the Qwen-VL families share: patches of images of any size, token types, rotary triples."""

from typing import Any, ClassVar

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from family_models._base import IMAGE, VIDEO, Piece, TinyFamily, text_settings

START, END, TIME = 101, 102, 103
PATCH, MERGE = 4, 2
CELL = PATCH * MERGE


class QwenVL(TinyFamily):
    """Sizes are in pixels; a visual token is ``CELL`` x ``CELL`` of them, a frame two pictures."""

    rows = (
        (3, (24, 32), 4), (1, (32, 24), 2, (16, 40), (24, 24), 3),
        ((4, 16, 24), 5, (24, 32), 2, (6, 16, 16), 6),
    )  # fmt: skip
    image = (24, 32)
    other = (40, 24)
    videos = ((4, 16, 24),)
    visual_inputs = (
        "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw",
        "second_per_grid_ts",
    )  # fmt: skip
    packed = False
    chunks = Version(transformers.__version__) >= Version("5.23") or (
        "transformers before 5.23 slices rotary triples as if they were batch rows"
    )
    mrope: ClassVar[list[int]] = [2, 3, 3]
    rope: ClassVar[dict[str, Any]] = {}

    def vision(self, **changes: Any) -> dict[str, Any]:
        """Settings of a small tower."""
        settings = {
            "depth": 3, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": MERGE,
            "temporal_patch_size": 2, "in_channels": 3, "initializer_range": 0.2,
        }  # fmt: skip
        return settings | changes

    def settings(self, **text: Any) -> dict[str, Any]:
        """Settings of the whole config but for the tower."""
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": self.mrope}
        rope |= self.rope
        return {
            "text_config": text_settings(rope_parameters=rope, **text),
            "image_token_id": IMAGE, "video_token_id": VIDEO,
            "vision_start_token_id": START, "vision_end_token_id": END,
        }  # fmt: skip

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        random = torch.Generator().manual_seed(seed)
        *moments, height, width = item
        grid = ((moments[0] // 2 if moments else 1), height // PATCH, width // PATCH)
        patches = torch.randn(grid[0] * grid[1] * grid[2], 2 * 3 * PATCH**2, generator=random)
        count = len(patches) // MERGE**2
        if not moments:
            inputs = {"pixel_values": patches, "image_grid_thw": torch.tensor([grid])}
            return Piece([START] + [IMAGE] * count + [END], count, inputs)
        inputs = {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([grid])}
        return Piece(self.video_ids(grid[0], count), count, inputs | self.timing())

    def video_ids(self, frames: int, count: int) -> list[int]:
        """Return the prompt of a video of ``frames`` frames and ``count`` tokens."""
        return [START] + [VIDEO] * count + [END]

    def timing(self) -> dict[str, Tensor]:
        """What a video brings beside its patches."""
        return {}

    def per_token(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}

    def explicit_positions(self, model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
        mask = inputs["attention_mask"]
        visual, _ = model.model.get_rope_index(
            inputs["input_ids"], attention_mask=mask, **{n: inputs[n] for n in names if n in inputs}
        )
        text = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
        return {"position_ids": torch.cat([text[None], visual])}

    def positions(self, model: Any, numbered: Tensor) -> None:
        """The model's own, from ``get_rope_index``."""


class QwenFrames(QwenVL):
    """From Qwen3-VL on a video's frames stand apart in the prompt."""

    def video_ids(self, frames: int, count: int) -> list[int]:
        frame = [VIDEO] * (count // frames)
        return [i for n in range(frames) for i in (TIME + n, START, *frame, END)]
