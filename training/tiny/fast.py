"""The model's forward for training on CPU: the genuine weights, fused projections, no slices.

Slices are avoided because their backward fills a zero tensor of the full size each time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = tuple[Tensor, ...]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Plain attention: on CPU in bf16 the fused kernel's backward takes twice as long."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ v


def tower_inputs(tower: Any, pixels: Tensor) -> Tensor:
    """(views, 3, side, side) pixels -> (views, 1 + patches, width)."""
    embeddings, norm = tower.embeddings, tower.pre_layrnorm
    kernel = embeddings.patch_embedding.weight
    patch, views = kernel.shape[-1], pixels.shape[0]
    grid = pixels.shape[-1] // patch
    cut = pixels.view(views, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    x = F.linear(cut.reshape(views, grid * grid, 3 * patch * patch), kernel.flatten(1))
    first = embeddings.class_embedding.expand(views, 1, -1)
    x = torch.cat([first, x], 1) + embeddings.position_embedding.weight
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def tower_weights(layer: Any) -> Weights:
    attention, mlp = layer.self_attn, layer.mlp
    three = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (
        layer.layer_norm1.weight,
        layer.layer_norm1.bias,
        torch.cat([p.weight for p in three]),
        torch.cat([p.bias for p in three]),
        attention.out_proj.weight,
        attention.out_proj.bias,
        layer.layer_norm2.weight,
        layer.layer_norm2.bias,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
    )


def tower_layer(x: Tensor, w: Weights, heads: int) -> Tensor:
    """One CLIP encoder layer on (views, tokens, width)."""
    g1, b1, qkv_w, qkv_b, out_w, out_b, g2, b2, fc1_w, fc1_b, fc2_w, fc2_b = w
    views, tokens, width = x.shape
    y = F.layer_norm(x, (width,), g1, b1, 1e-5)
    qkv = F.linear(y, qkv_w, qkv_b).view(views, tokens, 3, heads, width // heads)
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    y = attend(q, k, v).transpose(1, 2).reshape(views, tokens, width)
    x = x + F.linear(y, out_w, out_b)
    y = F.linear(F.layer_norm(x, (width,), g2, b2, 1e-5), fc1_w, fc1_b)
    return x + F.linear(y * torch.sigmoid(1.702 * y), fc2_w, fc2_b)


def rotary(positions: Tensor, head_width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(rows, tokens) positions -> cos and sin, each (rows, tokens, 1, head_width / 2)."""
    rates = 10000.0 ** -(torch.arange(0, head_width, 2).float() / head_width)
    angles = positions[..., None, None].float() * rates
    return angles.cos().to(dtype), angles.sin().to(dtype)


def decoder_weights(layer: Any) -> Weights:
    attention, mlp = layer.self_attn, layer.mlp
    three = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (
        layer.input_layernorm.weight,
        torch.cat([p.weight for p in three]),
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        mlp.down_proj.weight,
    )


def decoder_qkv(
    h: Tensor, norm: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises, projects and rotates: three (rows, heads, tokens, head width)."""
    rows, tokens, width = h.shape
    size = width // heads
    qkv = F.linear(F.rms_norm(h, (width,), norm, 1e-6), weight).view(rows, tokens, 3, heads, size)
    q, k, v = qkv.unbind(2)

    def turn(t: Tensor) -> Tensor:
        a, b = t.view(rows, tokens, heads, 2, size // 2).unbind(3)
        both = torch.stack([a * cos - b * sin, b * cos + a * sin], 3)
        return both.view(rows, tokens, heads, size).transpose(1, 2)

    return turn(q), turn(k), v.transpose(1, 2)


def decoder_rest(
    h: Tensor, o: Tensor, out_w: Tensor, norm: Tensor, gate_up_w: Tensor, down_w: Tensor
) -> Tensor:
    """Adds the attention output and the MLP to the residual stream."""
    rows, tokens, width = h.shape
    h = h + F.linear(o, out_w)
    y = F.linear(F.rms_norm(h, (width,), norm, 1e-6), gate_up_w)
    gate, up = y.view(rows, tokens, 2, -1).unbind(2)
    return h + F.linear(F.silu(gate) * up, down_w)


class Forward:
    """The two forwards over a model's weights; `compile` trades a minute for faster steps."""

    def __init__(self, model: nn.Module, compile: bool = False) -> None:
        self.model = model.model
        tower = self.model.vision_tower
        self.tower = getattr(tower, "vision_model", tower)
        self.heads = self.model.language_model.config.num_attention_heads

        def maybe(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=True) if compile else function

        self.tower_layer, self.qkv = maybe(tower_layer), maybe(decoder_qkv)
        self.rest = maybe(decoder_rest)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(views, 3, 64, 64) -> hidden_states[-2] with CLS, and CLS after the last layer."""
        x = tower_inputs(self.tower, pixels)
        *layers, last = self.tower.encoder.layers
        for layer in layers:
            x = self.tower_layer(x, tower_weights(layer), self.heads)
        top = self.tower_layer(x, tower_weights(last), self.heads)
        norm = self.tower.post_layernorm
        cls, _ = top.split([1, top.shape[1] - 1], 1)
        return x, F.layer_norm(cls[:, 0], norm.weight.shape, norm.weight, norm.bias, norm.eps)

    def visual_tokens(self, hidden: Tensor, order: Tensor) -> Tensor:
        """(pictures, views, 65, width) tower states -> (pictures, visual tokens, width)."""
        pictures, _, tokens, width = hidden.shape
        _, patches = hidden.split([1, tokens - 1], 2)
        seen = self.model.multi_modal_projector(patches.reshape(pictures, -1, width))
        newline = self.model.image_newline.view(1, 1, width).expand(pictures, 1, width)
        return torch.cat([seen, newline.to(seen.dtype)], 1).index_select(1, order)

    def read(self, h: Tensor, positions: Tensor, shared: int, mask: Tensor) -> list[Tensor]:
        """Decoder over (rows, shared + text, width) inputs.

        Args:
            shared: tokens at the start (image and what precedes it) that see each other causally.
            mask: (rows, 1, text, shared + text), added to the text tokens' attention scores.

        Returns:
            The states after each layer, then the final-norm states, all of all tokens.
        """
        decoder = self.model.language_model
        rows, tokens, width = h.shape
        cos, sin = rotary(positions, width // self.heads, h.dtype)
        causal = torch.full((shared, shared), -1e4, dtype=h.dtype).triu(1)
        states = []
        for layer in decoder.layers:
            norm1, qkv_w, out_w, norm2, gate_up_w, down_w = decoder_weights(layer)
            q, k, v = self.qkv(h, norm1, qkv_w, cos, sin, self.heads)
            sizes = [shared, tokens - shared]
            (q1, q2), (k1, _), (v1, _) = (t.split(sizes, 2) for t in (q, k, v))
            o = (
                torch.cat([attend(q1, k1, v1, causal), attend(q2, k, v, mask)], 2)
                .transpose(1, 2)
                .reshape(rows, tokens, width)
            )
            h = self.rest(h, o, out_w, norm2, gate_up_w, down_w)
            states.append(h)
        return [*states, F.rms_norm(h, (width,), decoder.norm.weight, 1e-6)]
