"""What a family says of its decoder layers: their kinds, their norms, where tokens may be dropped.

Some language models are hybrid: most of their layers carry a state along the sequence (linear
attention, a short convolution) instead of keeping keys and values of every token.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

CARRYING = frozenset({"linear_attention", "conv"})
"""Kinds of layers that carry a state along the sequence."""


class Layered:
    """The part of a family that says what its decoder layers are; the defaults fit Llama.

    ``uneven``: whether layers are of unequal widths, so that a mean layer is worked out from all.
    """

    uneven: ClassVar[bool] = False

    @property
    def _whole(self) -> Any:
        """This, as the family that it is a part of."""
        return self

    def second_norm(self, layer: int) -> nn.Module:
        """Return the norm before the MLP of decoder layer ``layer``."""
        block: Any = self._whole.layers[layer]
        # Gemma 2 and 3 have it beside a norm that closes the attention.
        own: nn.Module | None = getattr(block, "pre_feedforward_layernorm", None)
        norm: nn.Module = block.post_attention_layernorm if own is None else own
        return norm

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last decoder layer."""
        norm: nn.Module = self._whole.text_model.norm
        return norm

    def layer_kind(self, layer: int) -> str:
        """Return the kind of decoder layer ``layer``: its kind shares masks and rotary rows."""
        kinds = getattr(self._whole.text_model.config, "layer_types", None)
        return str(kinds[layer]) if kinds else ""

    def carries(self, layer: int) -> bool:
        """Tell whether decoder layer ``layer`` carries a state instead of keeping keys."""
        return self.layer_kind(layer) in CARRYING

    def reuses(self, layer: int) -> bool:
        """Tell whether decoder layer ``layer`` attends to the keys of an earlier one."""
        return False

    def holds(self, layer: int) -> bool:
        """Tell whether decoder layer ``layer`` keeps keys of its own."""
        return not (self.carries(layer) or self.reuses(layer))

    @property
    def hybrid(self) -> bool:
        """Whether some decoder layers carry a state along the sequence."""
        return any(map(self.carries, range(len(self._whole.layers))))

    @property
    def last_stage(self) -> int:
        """The last layer at which tokens may be dropped, 0-based.

        That of the first layer that carries a state: a token that never enters it is in no state.
        """
        depth = len(self._whole.layers)
        return next((k for k in range(depth) if self.carries(k)), depth - 1)

    @property
    def limit(self) -> str:
        """Why no tokens may be dropped behind ``last_stage``; empty: there is nothing behind it."""
        if not self.hybrid:
            return ""
        last = self.last_stage
        return (
            f"layer {last} of its language model is of kind {self.layer_kind(last)}, and what has "
            "entered its state cannot be dropped afterwards"
        )

    def rotary(self, layer: int, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Return rotary cos and sin of decoder layer ``layer`` at ``position_ids`` (``[B, S]``)."""
        embeddings: tuple[Tensor, ...] = self._whole.text_model.rotary_emb(
            hidden, position_ids=position_ids
        )
        return embeddings
