"""InternVL: tiles, then a thumbnail, all alike to the encoder; 2 x 2 patches make one token."""

from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from prunetune.families.base_configs import IMAGENET_PIXELS
from prunetune.families.bases.views import FixedViews, likest
from prunetune.tokens import Mosaic


class InternVL(FixedViews):
    """``InternVLForConditionalGeneration``, the lineage of TopV's InternVL2.

    A picture's tiles and its thumbnail stand side by side in the prompt, and nothing else in the
    model's inputs tells how many columns they make: of the possible mosaics the one that looks
    most like the thumbnail is taken. Video frames are pictures of one view.
    """

    model_type: ClassVar[str] = "internvl"
    joins_views: ClassVar[bool] = True
    resizing = "canvas"

    @property
    def merge(self) -> int:
        """Factor of the pixel shuffle."""
        return int(1 / self.config.downsample_ratio)

    def mosaics(self, slots: Tensor, labels: Tensor, sketches: list[Tensor]) -> list[Mosaic]:
        """Neighbouring slots are one picture: the processor puts markers around each."""
        length = len(slots) // len(sketches)
        starts = [0, *((slots.diff() > 1).nonzero().flatten() + 1).tolist(), len(slots)]
        result = []
        for start, end in pairwise(starts):
            views = sketches[start // length : end // length]
            if len(views) < 3:
                result += [Mosaic()] * len(views)
            else:
                result.append(_layout(views))
        return result

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """ImageNet's."""
        return IMAGENET_PIXELS

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return self.tower.encoder.layer

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the feature layer."""
        layers, layer = self.tower_layers(), int(self.config.vision_feature_layer)
        # hidden_states[k] is what enters layer k.
        module: nn.Module = layers[layer - 1 if layer > 0 else layer].attention
        return module

    def vision_has_cls(self) -> bool:
        """It has one."""
        return True


def _layout(views: list[Tensor]) -> Mosaic:
    """Return the mosaic of the tiles ``views[:-1]`` that is most like the thumbnail after them."""
    *tiles, thumbnail = views
    count = len(tiles)
    shapes = [Mosaic(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return likest(shapes, tiles, thumbnail)
