"""What GLM-4.1V and GLM-4.6V share: Qwen-VL's patches, another merger, pictures only."""

from typing import ClassVar

from torch import nn

from prunetune.families.bases.qwen import QwenVL


class Glm(QwenVL):
    """Base of GLM's vision models.

    A video's frames take the placeholders of pictures, and transformers tells them apart by what
    else is passed; videos are refused.
    """

    resizing = "volume"
    video_encoder_method: ClassVar[str | None] = None

    def projectors(self) -> list[nn.Module]:
        """Return the convolution that merges patches, and what is behind it."""
        return [self.tower.downsample, self.tower.merger]
