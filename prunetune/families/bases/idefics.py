"""Idefics 3 and SmolVLM: tiles between text tags, then a global view; patches are merged."""

from typing import Any, ClassVar

from torch import Tensor, nn

from prunetune.families.base import VisionCall, refuse
from prunetune.families.bases.views import FixedViews
from prunetune.tokens import Mosaic


class IdeficsLike(FixedViews):
    """Views are joined by the text between them, as the processor writes it.

    A tile is preceded by ``<fake_token_around_image><row_1_col_1>``, the global view by
    ``<fake_token_around_image><global-img>``; a line break ends each row of tiles. A tag may be one
    token or several, so no token id is assumed: a prompt ends with a global view, and a view with
    the same tag is one too. Video frames are global views.
    """

    joins_views: ClassVar[bool] = True
    resizing = "longest_edge"

    @property
    def text_model(self) -> Any:
        """The decoder stack."""
        return self.base.text_model

    @property
    def merge(self) -> int:
        """Factor of the connector's pixel shuffle."""
        return int(self.config.scale_factor)

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.base.vision_model

    def projectors(self) -> list[nn.Module]:
        """Return the connector."""
        base: Any = self.base
        return [base.connector]

    def stacked(self, call: VisionCall) -> Tensor:
        """All views but the batch's padding, which is all zeros, as the model tells it."""
        padded: Tensor = call.arguments["pixel_values"]
        values = padded.flatten(0, 1)
        real = self.real(values)
        seen: Tensor | None = call.arguments.get("pixel_attention_mask")
        if seen is not None and not bool(seen.flatten(0, 1)[real].all()):
            raise refuse(self.model, "pixel_attention_mask hides a part of a view: pad no views")
        return values[real]

    def real(self, views: Tensor) -> Tensor:
        """Return which of ``[n, 3, height, width]`` views are not padding, ``[n]`` bool."""
        real: Tensor = (views.to(self.base.dtype) != 0).flatten(1).any(1)  # type: ignore[arg-type]
        return real

    def mosaics(self, slots: Tensor, labels: Tensor, sketches: list[Tensor]) -> list[Mosaic]:
        """Read the tags before the views."""
        token = labels.tolist()
        length = len(slots) // len(sketches)
        starts = slots[::length].tolist()
        tags = [tuple(token[max(0, start - 2) : start]) for start in starts]
        closing = starts[-1] + length
        fake = token[closing] if closing < len(token) else tags[-1][0]
        # Behind the last tile of a row comes a line break.
        ends = [token[start + length] != fake for start in starts[:-1]]
        result: list[Mosaic] = []
        tiles = rows = 0
        for tag, after in zip(tags, [*ends, False], strict=True):
            if tag != tags[-1]:
                tiles, rows = tiles + 1, rows + after
                continue
            if rows == 0 or tiles % rows or tiles == 1:
                if tiles:
                    raise refuse(
                        self.model,
                        f"{tiles} tiles in {rows} rows stand before a global view: pass prompts "
                        "as the processor writes them",
                    )
                result.append(Mosaic())
            else:
                result.append(Mosaic(rows, tiles // rows))
            tiles = rows = 0
        return result
