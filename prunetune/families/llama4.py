"""Llama 4: tiles between separators, then a global view; chunked layers, experts."""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from prunetune.families.base import TappedAttention, Tokens, VisionCall, refuse
from prunetune.families.base_configs import SIGLIP_PIXELS, grid_side
from prunetune.families.base_towers import Tower, weights_passed
from prunetune.families.bases.views import FixedViews, merged_order
from prunetune.numerics import fitting
from prunetune.release import cache_of, version
from prunetune.tokens import Mosaic


class Llama4(FixedViews):
    """``Llama4ForConditionalGeneration``: three layers of four see a chunk of the sequence only.

    The fourth rotates nothing; its queries grow with their place in the sequence, which it counts
    by itself. The whole model is one module: what takes pixels returns logits.
    """

    model_type: ClassVar[str] = "llama4"
    joins_views: ClassVar[bool] = True
    base_has_head: ClassVar[bool] = True
    complex_rotary: ClassVar[bool] = True
    broadcasts: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse releases of transformers that cannot run the model themselves."""
        asked = inspect.unwrap(type(self.model).forward).__code__.co_names
        if "image_outputs" in asked and not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
            raise refuse(
                self.model,
                f"transformers {version()} itself cannot run it (its forward wants image_outputs "
                "of its language model, whose output has none); install another, such as 5.22",
            )

    @property
    def text_model(self) -> Any:
        """The decoder stack, within a language model with a head."""
        base: Any = self.base
        return base.language_model.model

    @property
    def merge(self) -> int:
        """Factor of the pixel shuffle."""
        return int(1 / self.config.vision_config.pixel_shuffle_ratio)

    def features(self, output: Any) -> Any:
        """The encoder's are not projected yet."""
        states: Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
        base: Any = self.base
        return base.multi_modal_projector(states)

    def final_states(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Those that the head is given."""
        found: list[Tensor] = []
        hook = self.text_model.register_forward_hook(
            lambda text, args, output: found.append(output[0])
        )
        try:
            output: Any = self.base(**{"logits_to_keep": 1, **inputs})
        finally:
            hook.remove()
        return found[-1], output

    def rotary(self, layer: int, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Cos and sin of pairs of neighbouring numbers."""
        turned: Tensor = self.text_model.rotary_emb(hidden, position_ids)
        return turned.real, turned.imag

    # -- views ---------------------------------------------------------------------------------

    def mosaics(self, slots: Tensor, labels: Tensor, sketches: list[Tensor]) -> list[Mosaic]:
        """Read the tokens around the views.

        One stands before every global view, as before the prompt's last; of a picture's tiles the
        last one in each row is followed by the same token as the last of all.
        """
        token, length = labels.tolist(), len(slots) // len(sketches)
        starts = slots[::length].tolist()
        tags = [token[start - 1] if start else None for start in starts]
        found: list[Mosaic] = []
        tiles: list[int] = []
        for start, tag in zip(starts, tags, strict=True):
            if tag != tags[-1]:
                tiles.append(token[start + length])
                continue
            rows = tiles.count(tiles[-1]) if tiles else 0
            if tiles and (len(tiles) == 1 or len(tiles) % rows):
                raise refuse(
                    self.model,
                    f"{len(tiles)} tiles in {rows} rows stand before a global view: pass prompts "
                    "as the processor writes them",
                )
            found.append(Mosaic(rows, len(tiles) // rows) if tiles else Mosaic())
            tiles = []
        return found

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """From -1 to 1."""
        return SIGLIP_PIXELS

    # -- tower ---------------------------------------------------------------------------------

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.base.vision_model

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return self.tower.model.layers

    def projectors(self) -> list[nn.Module]:
        """Return what merges patches, and what makes tokens of them."""
        base: Any = self.base
        return [self.tower.vision_adapter, base.multi_modal_projector]

    def tower_shape(self) -> Tower:
        """Return what the tower multiplies; it unfolds patches and has no convolution."""
        layers = list(self.tower_layers())
        return Tower(
            patch=weights_passed(self.tower.patch_embedding),
            row=sum(map(weights_passed, layers)),
            token=sum(map(weights_passed, self.projectors())),
            whole=int(self.config.vision_config.hidden_size) * len(layers),
        )

    def vision_has_cls(self) -> bool:
        """It has one, which stands last; see ``vision_heads``."""
        return True

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Turn pairs of numbers by their places; CLS token first, patches of a token together."""
        module = tapped.module
        states = fitting(tapped.states, module.q_proj)
        turned = tapped.arguments["freqs_ci"].to(states.device).flatten(1)
        order = merged_order(*grid_side(self.config), self.merge)
        order = torch.cat([order.new_tensor([len(order)]), order]).to(states.device)
        width = int(module.head_dim)
        for view in torch.split(states, self.views(call)):
            query, key = (
                _turned(project(view).view(*view.shape[:2], -1, width), turned)[:, :, order]
                for project in (module.q_proj, module.k_proj)
            )
            yield (query[:, :, :1] if first_only else query) * width**-0.5, key

    # -- layers that count places by themselves --------------------------------------------------

    def number(self, tokens: Tokens) -> Callable[[], None]:
        """Give queries the temperature of their places in the sequence, dropped tokens counted.

        Layers without rotation count what they hold. Their queries are a projection and nothing
        else, so that what it returns is scaled by the one temperature over the other.
        """
        config = self.text_model.config
        hooks: list[Any] = []
        for layer in self.layers if config.attn_temperature_tuning else ():
            attention: Any = layer.self_attn
            if not attention.use_rope:
                hooks += _hooks(attention, tokens)

        def undo() -> None:
            for hook in hooks:
                hook.remove()

        return undo


def _hooks(attention: Any, tokens: Tokens) -> list[Any]:
    """Hook an attention module: it scales its queries by their places in the sequence."""
    local = threading.local()

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = cache_of(kwargs)
        local.held = 0 if cache is None else int(cache.get_seq_length(module.layer_idx))

    def scale(project: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        held: int | None = getattr(local, "held", None)
        # Scorers call the projection by itself.
        place = None if held is None else tokens()
        if held is None or place is None:
            return None
        counted = torch.arange(output.shape[1], device=output.device) + held
        right = _temperature(attention, place.to(output.device).clamp_min(0))
        return output * (right / _temperature(attention, counted))[..., None].to(output.dtype)

    def leave(module: Any, args: tuple[Any, ...], output: Any) -> None:
        local.held = None

    return [
        attention.register_forward_pre_hook(enter, with_kwargs=True),
        attention.q_proj.register_forward_hook(scale),
        attention.register_forward_hook(leave, always_call=True),
    ]


def _temperature(attention: Any, places: Tensor) -> Tensor:
    """Return what queries at places (int64) are multiplied with (arXiv 2501.19399), float32."""
    steps = ((places.float() + 1) / int(attention.floor_scale)).floor()
    return steps.log1p() * float(attention.attn_scale) + 1


def _turned(states: Tensor, turned: Tensor) -> Tensor:
    """Return heads whose pairs of neighbours are turned.

    Args:
        states: ``[views, n, heads, d]``.
        turned: ``[n, d / 2]`` complex.

    Returns:
        ``[views, heads, n, d]`` float32.
    """
    states = states.float().transpose(1, 2)
    pairs = torch.complex(states[..., ::2], states[..., 1::2]) * turned
    return torch.view_as_real(pairs).flatten(-2)
