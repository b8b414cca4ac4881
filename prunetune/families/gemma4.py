"""Gemma 4: pictures of any size, pooled; two kinds of layers, the last of which may own no keys."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.families.base import Family, TappedAttention, VisionCall, refuse
from prunetune.families.base_towers import Seen, Tower, weights_passed
from prunetune.families.bases.views import from_padded
from prunetune.numerics import fitting
from prunetune.tokens import ImageGeometry, grid_geometry


class Gemma4(Family):
    """``Gemma4ForConditionalGeneration``.

    Small checkpoints give each layer an input of its own for every token, and let the last layers
    reuse the keys of the last two before them: tokens have to leave before those. Large ones let
    pictures attend in both directions, in sliding layers only.
    """

    model_type: ClassVar[str] = "gemma4"
    one_view = True
    uneven: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse text models without causal attention, or without a layer that owns its keys."""
        if getattr(self.config.text_config, "use_bidirectional_attention", None) == "all":
            raise refuse(self.model, "its text attends in both directions, so nothing is cached")
        if all(map(self.reuses, range(len(self.layers)))):
            raise refuse(self.model, "no layer of its language model keeps keys of tokens")

    # -- decoder layers ------------------------------------------------------------------------

    def reuses(self, layer: int) -> bool:
        """Tell whether a decoder layer attends to the keys of an earlier one."""
        block: Any = self.layers[layer]
        return bool(block.self_attn.is_kv_shared_layer)

    @property
    def last_stage(self) -> int:
        """The first of the layers whose keys are reused: all of these hold the same tokens."""
        owned = [k for k in range(len(self.layers)) if not self.reuses(k)]
        if len(owned) == len(self.layers):
            return len(owned) - 1
        return min(max(k for k in owned if self.layer_kind(k) == kind) for kind in self._kinds())

    def _kinds(self) -> set[str]:
        return {self.layer_kind(k) for k in range(len(self.layers)) if self.reuses(k)}

    @property
    def limit(self) -> str:
        """Whose keys are reused."""
        depth, last = len(self.layers), self.last_stage
        if not any(map(self.reuses, range(depth))):
            return ""
        first = next(k for k in range(depth) if self.reuses(k))
        return (
            f"layers {first} to {depth - 1} of its language model reuse keys of layers {last} to "
            f"{first - 1}, which have to hold the same tokens"
        )

    def rotary(self, layer: int, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Sliding and full layers turn at different speeds, and heads of different widths."""
        embeddings: tuple[Tensor, ...] = self.text_model.rotary_emb(
            hidden, position_ids, self.layer_kind(layer)
        )
        return embeddings

    def logits(self, states: Tensor) -> Tensor:
        """Capped, by a soft bound, where a checkpoint has one."""
        logits = super().logits(states)
        bound = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        if bound is None:
            return logits
        capped: Tensor = bound * (logits / bound).tanh()
        return capped

    def prefix_problem(self) -> str | None:
        """Layers get an input of their own, keys of earlier ones, or masks with blocks in some."""
        return "its layers are given more than states: an input each, or keys of earlier layers"

    # -- pictures ------------------------------------------------------------------------------

    @property
    def merge(self) -> int:
        """Side of the average pooling."""
        return int(self.config.vision_config.pooling_kernel_size)

    @property
    def patches_per_token(self) -> int:
        """Patches that are pooled into one visual token."""
        return self.merge**2

    def grids(self, call: VisionCall) -> list[tuple[int, int]]:
        """Return (rows, columns) of patches of every picture: places are (x, y), -1 at padding."""
        places: Tensor = call.arguments["image_position_ids"]
        return [(rows + 1, cols + 1) for cols, rows in places.amax(1).tolist()]

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """The pooled grid, row by row."""
        side = self.merge
        return [grid_geometry(rows // side, cols // side) for rows, cols in self.grids(call)]

    def views(self, call: VisionCall) -> list[int]:
        """One view a picture."""
        return [1] * len(call.arguments["image_position_ids"])

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Each picture put together again from its patches, whose channels come last."""
        side = int(self.config.vision_config.patch_size)
        return from_padded(call.arguments["pixel_values"], self.grids(call), side)

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """From 0 to 1: the tower itself makes that -1 to 1."""
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    # -- tower ---------------------------------------------------------------------------------

    def projectors(self) -> list[nn.Module]:
        """Return what turns pooled patches into tokens."""
        base: Any = self.base
        return [base.embed_vision]

    def tower_shape(self) -> Tower:
        """Return what the tower multiplies: it pools by a matrix of all tokens and patches."""
        vision, layers = self.config.vision_config, list(self.tower_layers())
        heads = int(vision.num_attention_heads) * int(vision.head_dim)
        return Tower(
            patch=weights_passed(self.tower.patch_embedder),
            row=sum(map(weights_passed, layers)),
            token=sum(map(weights_passed, self.projectors())),
            whole=heads * len(layers) + int(vision.hidden_size) / (2 * self.patches_per_token),
        )

    def looked(self, call: VisionCall) -> Seen:
        """Every picture is padded to the longest of its call."""
        count, length = call.arguments["pixel_values"].shape[:2]
        tokens = sum(rows * cols for rows, cols in self.grids(call)) / self.patches_per_token
        rows = float(count * length)
        return Seen(patches=rows, rows=rows, tokens=tokens, pairs=rows * length)

    def vision_attention_module(self) -> nn.Module | None:
        """Attention of the last layer: its output, pooled, are the features."""
        module: nn.Module = self.tower_layers()[-1].self_attn
        return module

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normed and turned by column and row; no padding, patches of one token side by side."""
        module, side = tapped.module, self.merge
        # The weights stand within a layer that may clip.
        states = fitting(tapped.states, getattr(module.q_proj, "linear", module.q_proj))
        query, key = (
            _turned(norm(project(states).unflatten(2, (-1, int(module.head_dim)))), tapped)
            for norm, project in ((module.q_norm, module.q_proj), (module.k_norm, module.k_proj))
        )
        for item, places in enumerate(call.arguments["image_position_ids"].to(query.device)):
            x, y = places[: int((places >= 0).all(-1).sum())].unbind(-1)
            token = x // side + (int(x.max()) // side + 1) * (y // side)
            order = (token * side**2 + y % side * side + x % side).argsort()
            yield query[item : item + 1, :, order], key[item : item + 1, :, order]


def _turned(states: Tensor, tapped: TappedAttention) -> Tensor:
    """Return heads turned by their patches' columns (first half of a head) and rows (second).

    Args:
        states: ``[views, n, heads, d]``.
        tapped: With the module's cos and sin, ``[views, n, d]``.

    Returns:
        ``[views, heads, n, d]`` float32.
    """
    cos, sin = (part[:, None].float() for part in tapped.arguments["position_embeddings"])
    states = states.float().transpose(1, 2)
    one, two, three, four = torch.chunk(states, 4, -1)
    turned: Tensor = states * cos + torch.cat([-two, one, -four, three], -1) * sin
    return turned
