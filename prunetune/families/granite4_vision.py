"""Granite 4 Vision: any-resolution pictures whose features are added before several layers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Survivors, VisionCall
from prunetune.families.base_configs import grid_side
from prunetune.families.base_towers import Tower
from prunetune.families.bases.anyres import AnyResolution, marker, pooling_matrix
from prunetune.families.bases.clip import clip_like_attention
from prunetune.families.bases.deepstack import left_of, left_of_mask

SURVIVORS = "_prunetune_survivors"


class Granite4Vision(AnyResolution):
    """``Granite4VisionForConditionalGeneration``.

    Image tokens enter the language model as zeros. Before each of some decoder layers features of
    their own are added to them: of another tower layer, or of another corner of each 2 x 2 patches.
    A window of patches becomes a smaller window of tokens by cross attention; a token's place, and
    its share of the tower's attention, are those of the patches that its query is averaged from.
    """

    model_type: ClassVar[str] = "granite4_vision"
    makes_cache: ClassVar[bool] = False

    def features(self, output: Any) -> Any:
        """Those of the first layer that gets some: all have the same tokens."""
        return output.deepstack_features[0][1]

    def logits(self, states: Tensor) -> Tensor:
        """Scaled down by the config's ``logits_scaling``."""
        return super().logits(states) / float(self.config.text_config.logits_scaling)

    def view_grid(self) -> tuple[int, int]:
        """The tower's grid, sampled down."""
        rate = Fraction(self.config.downsample_rate)
        rows, cols = grid_side(self.config)
        return int(rows * rate), int(cols * rate)

    def pack(self, coordinates: Tensor, size: tuple[int, int], call: VisionCall | None) -> Tensor:
        """As the model packs features."""
        base: Any = self.base
        made = base.pack_image_features(
            [coordinates], torch.tensor([size], device="cpu"), "full", marker(coordinates)
        )
        # Before transformers 5.23 lengths come along.
        tokens: Tensor = (made[0] if isinstance(made, tuple) else made)[0]
        return tokens

    def pooling(self, call: VisionCall) -> Tensor | None:
        """Queries are averages over blocks."""
        return pooling_matrix(*grid_side(self.config), "average", self.view_grid())

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last tower layer that features are taken of, if blocks are whole."""
        whole = all(n % m == 0 for n, m in zip(grid_side(self.config), self.view_grid()))
        depth = len(self.tower_layers())
        taken = [layer for layer, _ in self.config.deepstack_layer_map]
        taken.append(self.config.spatial_vision_layer)
        last = max(layer if layer >= 0 else depth + 1 + layer for layer in taken)
        return clip_like_attention(self, feature_layer=last) if whole else None

    # -- what the tower costs ----------------------------------------------------------------

    def projectors(self) -> list[nn.Module]:
        """Return the query transformers, one a layer that features are added before."""
        base: Any = self.base
        return [*base.layerwise_projectors, *base.spatial_projectors]

    def tower_shape(self) -> Tower:
        """Keys and values are made of every patch, all else of every token of a window."""
        shape, inside, beside = super().tower_shape(), 0.0, 0.0
        parts: Any = self.projectors()
        for part in parts:
            width = int(part.out_linear.in_features)
            for block in part.qformer.encoder.layer:
                inside += 2 * width * part.query_length
                if block.has_cross_attention:
                    cross = block.crossattention.attention
                    beside += cross.key.weight.numel() + cross.value.weight.numel()
                    inside += 2 * width * part.window_side**2
        return replace(shape, patch=shape.patch + beside, token=shape.token - beside + inside)

    def projected(self, call: VisionCall, rows: int) -> float:
        """The tokens of a view."""
        down, across = self.view_grid()
        return float(down * across)

    # -- features that are added between decoder layers ----------------------------------------

    def follow(self, survivors: Survivors) -> Callable[[], None]:
        """Give the text model's forward a mask and features that shorten themselves."""
        text = self.text_model

        def given(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            mask, features = kwargs.get("vision_mask"), kwargs.get("deepstack_features")
            if mask is None or features is None:
                return None
            own: dict[str, Any] = {"vision_mask": _Mask(mask, survivors)}
            own["deepstack_features"] = _Features(features, mask, survivors)
            return args, kwargs | own

        hook = text.register_forward_pre_hook(given, with_kwargs=True)
        before = text.__dict__.get(SURVIVORS)
        text.__dict__[SURVIVORS] = survivors

        def undo() -> None:
            hook.remove()
            text.__dict__.pop(SURVIVORS, None)
            if before is not None:
                text.__dict__[SURVIVORS] = before

        return undo

    def injected(self, arguments: Mapping[str, Any]) -> list[Tensor]:
        """What is added before a layer is added behind the one before it; empty where nothing is.

        What is added before layer 0 is in the states that enter it.
        """
        features: Mapping[int, Tensor] = arguments.get("deepstack_features") or {}
        if not features:
            return []
        none = next(iter(features.values()))[:0]
        return [features.get(layer, none) for layer in range(1, max(features) + 1)]

    def inject(self, hidden: Tensor, image_mask: Tensor, features: Tensor) -> Tensor:
        """Add them to the states of the image tokens that are left."""
        if not len(features):
            return hidden
        survivors: Survivors | None = self.text_model.__dict__.get(SURVIVORS)
        left = survivors() if survivors is not None else None
        mask = left_of_mask(image_mask, left)
        features = left_of(features, image_mask, left).to(hidden.device, hidden.dtype)
        done = hidden.clone()
        done[mask.to(hidden.device)] += features
        return done


class _Mask:
    """The mask ``[B, S, 1 or d]`` of image tokens, as it is where somebody asks for it."""

    def __init__(self, mask: Tensor, survivors: Survivors) -> None:
        self._mask, self._survivors = mask, survivors

    def to(self, *where: Any) -> Tensor:
        """Return it for the tokens under way, ``[B, m, 1 or d]``."""
        left, mask = self._survivors(), self._mask
        tokens = left_of_mask(mask[..., 0], left)[..., None]
        return tokens.expand(-1, -1, mask.shape[2]).to(*where)


class _Features(dict[int, Tensor]):
    """Features by layer, of the image tokens under way where somebody asks for them."""

    def __init__(self, features: Mapping[int, Tensor], mask: Tensor, survivors: Survivors) -> None:
        super().__init__(features)
        self._mask, self._survivors = mask[..., 0], survivors

    def __getitem__(self, layer: int) -> Tensor:
        return left_of(super().__getitem__(layer), self._mask, self._survivors())
