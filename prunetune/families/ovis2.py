"""Ovis 2: a thumbnail, then tiles between tags; a token is a mean of a visual vocabulary."""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from prunetune.families.base import refuse
from prunetune.families.base_configs import CLIP_PIXELS
from prunetune.families.base_towers import Tower
from prunetune.families.bases.views import FixedViews, likest
from prunetune.tokens import Mosaic


class Ovis2(FixedViews):
    """``Ovis2ForConditionalGeneration`` (arXiv 2405.20797): no projector, but probabilities.

    The tower gives each token a distribution over a vocabulary of its own, whose embeddings are
    averaged by it. Between a picture's views stands one tag each: ``<IMG_GRID>`` behind the
    thumbnail, then ``<IMG_COL>`` and ``<IMG_ROW>``; between pictures there are more tokens.
    """

    model_type: ClassVar[str] = "ovis2"
    joins_views: ClassVar[bool] = True
    resizing = "covering"

    def check(self) -> None:
        """Refuse features that are drawn, and a grid that is padded before it is merged."""
        vision = self.config.vision_config
        if vision.tokenize_function == "gumbel_argmax":
            raise refuse(self.model, "its features are drawn at random (tokenize_function)")
        if int(vision.image_size) // int(vision.patch_size) % self.merge:
            raise refuse(
                self.model,
                f"a side of {int(vision.image_size) // int(vision.patch_size)} patches is not made "
                f"of whole blocks of {self.merge} (hidden_stride)",
            )

    @property
    def merge(self) -> int:
        """Side of the blocks that become one token."""
        return int(self.config.vision_config.hidden_stride)

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As CLIP's."""
        return CLIP_PIXELS

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return self.tower.transformer.encoder.layers

    def projectors(self) -> list[nn.Module]:
        """Return what makes probabilities of merged rows."""
        return [self.tower.head_linear]

    def tower_shape(self) -> Tower:
        """With the mean over the vocabulary, a product with all of its embeddings."""
        shape, base = super().tower_shape(), self.base
        table: Any = base.visual_embeddings_table
        return replace(shape, token=shape.token + table.num_embeddings * table.embedding_dim)

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer: its output are the features."""
        module: nn.Module = self.tower_layers()[-1].attention
        return module

    def mosaics(self, slots: Tensor, labels: Tensor, sketches: list[Tensor]) -> list[Mosaic]:
        """Read the tags between the views."""
        token, length = labels.tolist(), len(slots) // len(sketches)
        starts = slots[::length].tolist()
        found: list[list[int]] = []
        for k, start in enumerate(starts):
            # One token only between two views: they are of one picture.
            if not k or start - starts[k - 1] - length != 1:
                found.append([])
            found[-1].append(k)
        return [
            self._layout([token[starts[k] - 1] for k in views[1:]], [sketches[k] for k in views])
            for views in found
        ]

    def _layout(self, tags: list[int], sketches: list[Tensor]) -> Mosaic:
        """Return the mosaic of a picture by the tags before its tiles."""
        tiles = len(tags)
        if not tiles:
            return Mosaic()
        _, grid, col, row, _ = self.config.visual_indicator_token_ids
        ends = tags[1:]
        if tags[0] == grid:
            rows = 1 + ends.count(row)
        elif len(set(ends)) == 2:
            # Of embeddings nobody knows the tags; a row of several tiles ends at the second kind.
            rows = tiles // (ends.index(next(tag for tag in ends if tag != ends[0])) + 1)
        else:
            thumbnail, *rest = sketches
            rows = likest([Mosaic(1, tiles), Mosaic(tiles, 1)], rest, thumbnail).rows
        if tiles % rows or (tags[0] == grid and set(ends) - {col, row}):
            raise refuse(
                self.model,
                f"{tiles} tiles in {rows} rows stand behind a thumbnail: pass prompts as the "
                "processor writes them",
            )
        return Mosaic(rows, tiles // rows, thumbnail_first=True)
