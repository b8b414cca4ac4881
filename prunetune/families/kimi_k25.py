"""Kimi K2.5: a packed tower for pictures of any size, before a decoder of latent attention."""

from typing import Any, ClassVar

from torch import nn

from prunetune.families.bases.raster import RasterPatches


class KimiK25(RasterPatches):
    """``Kimi_K25ForConditionalGeneration`` (MoonViT, DeepSeek-V3's decoder); pictures only.

    The decoder caches latents, not keys: what reads queries and keys of a layer is refused. Frames
    of a video are averaged, so that a token is of several views; videos are refused.
    """

    model_type: ClassVar[str] = "kimi_k25"

    @property
    def merge(self) -> int:
        """Side of the blocks of patches that become one token."""
        return int(self.config.vision_config.merge_kernel_size[0])

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
