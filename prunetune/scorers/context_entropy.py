"""Attention received from the tokens that matter, and patch entropy (VFlowOpt)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.registry import Tunable
from prunetune.scorers.base import Need, ScoreContext, Scorer
from prunetune.tokens import ImageGeometry


class ContextEntropy(Scorer):
    """VFlowOpt, arXiv 2508.05211 (ICCV 2025), section 3.2: calibrated attention and entropy.

    With the vision tower's attention ``A`` (query by key, head mean) of one crop of N patches:

        r_j = mean_i A_ij                                attention that patch j receives
        K   = {j : r_j > threshold * u}                  patches that matter, the queries
        I_j = mean_{k in K} A_kj + alpha * softmax(H)_j  H: entropy of the patch's grey values

    The unit u is 1 / N (``"uniform"``: what a patch receives of attention that is spread evenly) or
    the mean of r over the crop (``"mean"``, the release). They are the same but where a CLS token
    is dropped, which keeps its share. The mean over K, as in the released code; the paper's
    Eq. 4 has a sum, next to which no ``alpha`` in [-1, 1] would count. Both terms then sum to about
    1 over a crop. Where K is empty (always from a ``threshold`` of N on) all patches are queries:
    the release divides by zero there. Crops are ranked together, as published, unless
    ``per_crop``. Unit: attention probability over the token's own crop. Standardised linearly: it
    may be negative.

    A picture whose mosaic of tiles is shrunk by interpolation has tokens that lie between patches.
    ``interpolated`` gives them the scores of the patches around, as the release does: the map is
    stitched, unpadded and shrunk as the features are. Otherwise they have the nearest patch's.

    Attributes:
        threshold: The paper's t: attention a patch must receive to be a query, in units of
            ``unit``. Released: 28.7, 34.8 and 39.3 of 729 patches, for 50, 25 and 10%.
        alpha: Weight of the entropy term. Released: 0.
        unit: See above. ``"mean"`` since version 2 of the config format.
        interpolated: See above. True since version 2 of the config format.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"vision_map", "patch_entropy"})
    searched: ClassVar[Mapping[str, Any]] = {"unit": "mean", "interpolated": True}
    summary: ClassVar[str] = "attention from the patches that receive much, and entropy (VFlowOpt)"

    name: Literal["context_entropy"] = "context_entropy"
    threshold: Annotated[
        float,
        Field(ge=0.0, le=10000.0),
        # No patch receives more than N means: on small crops only low values leave a query.
        Tunable(0.0, 50.0, log=True, shown="attention that makes a patch a query, in means"),
    ] = 1.0
    alpha: Annotated[
        float, Field(ge=-10.0, le=10.0), Tunable(-1.0, 1.0, shown="weight of the patch entropy")
    ] = 0.0
    unit: Literal["uniform", "mean"] = "uniform"
    interpolated: bool = False

    @property
    def since(self) -> int:
        """Version 2 of the config format, where it says what version 1 does not mean."""
        return 2 if self.unit != "uniform" or self.interpolated else 1

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for name in ("unit", "interpolated"):
            if name in data and data[name] == type(self).model_fields[name].default:
                # What is of version 1 keeps its bytes, and so its digest.
                del data[name]
        return data

    @exactly()
    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the importance, ``[visual]`` float32."""
        attention = ctx.given("vision_map").float()
        entropy = ctx.given("patch_entropy").float()
        received = attention.mean(1)
        query = received > self._least(received)
        query = query | ~query.any(1, keepdim=True)
        share = query.float() / query.sum(1, keepdim=True)
        context = torch.bmm(share[:, None], attention)[:, 0]
        importance = context + self.alpha * entropy.softmax(1)
        return self._at(importance.to(ctx.device), ctx.geometry)

    def _least(self, received: Tensor) -> Tensor | float:
        """Return what a query receives more than, of each view or of all."""
        if self.unit == "mean":
            return self.threshold * received.mean(1, keepdim=True)
        return self.threshold / received.shape[1]

    def _at(self, importance: Tensor, place: ImageGeometry) -> Tensor:
        """Return the map (``[views, patches]``) at each token, ``[visual]``."""
        if not self.interpolated:
            return importance[place.tile, place.inside]
        rows, cols, across = place.tile_rows, place.tile_cols, place.across
        tiled = place.tile > 0
        mosaic = (place.tile - 1).clamp_min(0)
        total = torch.zeros_like(place.row_off)
        for row, high in _around(mosaic // across * rows * tiled + place.row, place.row_off):
            for col, wide in _around(mosaic % across * cols * tiled + place.col, place.col_off):
                tile = torch.where(tiled, 1 + row // rows * across + col // cols, 0)
                # A neighbour outside has no share.
                tile = tile.clamp(0, len(importance) - 1)
                inside = row % rows * cols + col % cols
                total.add_(importance[tile, inside] * (high * wide))
        return total


def _around(patch: Tensor, off: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the patches at both sides of ``patch + off``, ``[n]`` int64, and their shares."""
    low = off.floor()
    share = off - low
    return [(patch + low.long(), 1.0 - share), (patch + low.long() + 1, share)]
