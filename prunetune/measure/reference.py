"""What a study computes once: the unpruned reference and the states entering each first layer."""

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prunetune.families import Family
from prunetune.families.base_configs import text_window
from prunetune.families.base_towers import Seen
from prunetune.measure.prompts import Prompts, given_positions, positions
from prunetune.release import LayerCall, cache_of
from prunetune.runtime.choice.question import note_prompt
from prunetune.runtime.choice.taps import LayerTap, last_query_row, row_readable
from prunetune.runtime.layers.sight import visible
from prunetune.runtime.vision.tower import ImageCapture, VisionCapture, VisionTap, wrap_encoder
from prunetune.runtime.vision.views import join_views


@dataclass
class OwnAnswer:
    """The unpruned model's own greedy answer.

    Attributes:
        ids: Its tokens, without the one that ends it; empty where that comes first.
        states: Decoder layer to the ``[n, d]`` states entering it.
        embeddings: Rotary cos and sin, ``[n, head_dim]`` each, by kind of layer.
        position_ids: ``[n]`` int64.
        tail: ``[1 + n, d]`` final states from the prompt's last token on.
    """

    ids: list[int]
    states: dict[int, Tensor]
    embeddings: dict[str, tuple[Tensor, ...]]
    position_ids: Tensor
    tail: Tensor


@dataclass
class Reference:
    """One calibration sample, unpruned; nothing in it is padded.

    Attributes:
        query: Slot of the prompt's last token; the answer's tokens are behind it.
        answer: Token ids of the expected answer; None without one.
        states: Decoder layer to the ``[S, d]`` states entering it.
        taps: Decoder layer to its tap, for a stage at the next layer; without the batch dimension.
        embeddings: Rotary cos and sin, ``[S, head_dim]`` each, by kind of layer.
        position_ids: ``[S]`` int64.
        image_mask: ``[S]`` bool.
        images: What is known of its images.
        tail: ``[t, d]`` final states from the prompt's last token on.
        log_probs: ``[vocabulary]`` float32, next token after the prompt.
        correct: Whether greedy decoding gives exactly the expected answer; None without one.
        injected: What the text model adds behind its first layers, see ``Family.injected``.
        blocks: ``[S]`` int64, which tokens attend in both directions, see ``Family.blocks``.
        prefix: Digest of the prompt up to its last picture's end; empty where nothing goes on
            from there.
        own: The model's own answer; None where nobody asks.
        seen: What the vision tower was given.
    """

    query: int
    answer: list[int] | None
    states: dict[int, Tensor]
    taps: dict[int, LayerTap]
    embeddings: dict[str, tuple[Tensor, ...]]
    position_ids: Tensor
    image_mask: Tensor
    images: list[ImageCapture]
    tail: Tensor
    log_probs: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.float32, device="cpu")
    )
    correct: bool | None = None
    injected: list[Tensor] = field(default_factory=list)
    blocks: Tensor | None = None
    prefix: str = ""
    own: OwnAnswer | None = None
    seen: Seen = field(default_factory=Seen)

    @property
    def shared(self) -> int:
        """Tokens up to the last picture's end."""
        return int(self.image_mask.nonzero().max()) + 1

    @property
    def image_tokens(self) -> int:
        """Image tokens, separators included."""
        return int(self.image_mask.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of what grows with the prompt's length."""
        kept = [*self.states.values(), *self.injected, self.log_probs]
        kept += [part for pair in self.embeddings.values() for part in pair]
        kept += [tap.target for tap in self.taps.values() if tap.target is not None]
        return sum(part.numel() * part.element_size() for part in kept)


class Recorder:
    """Runs a model unpruned, a sample at a time, and remembers what trials will start from.

    One at a time: a reference then depends on its sample alone, whatever stands beside it, and an
    unpruned prompt fills the processor by itself. Questions about the same images, asked one after
    the other, share one run of the vision tower.

    Args:
        family: Of the model.
        deepest: Last candidate first layer; the states entering layers 0 .. deepest are kept, none
            below 0.
    """

    def __init__(self, family: Family, deepest: int) -> None:
        self.family = family
        self.deepest = min(deepest, family.last_stage)
        self._readable = row_readable(list(family.layers)[: family.last_stage + 1])
        self._states: dict[int, Tensor] = {}
        self._targets: dict[int, Tensor] = {}
        self._masks: dict[int, Any] = {}
        self._embeddings: dict[str, tuple[Tensor, ...]] = {}
        self._capture: VisionCapture | None = None
        self._injected: list[Tensor] = []
        self._cache: Any = None
        self._encoded: tuple[Any, Any, Any, list[ImageCapture]] | None = None

    def record(self, prompts: Prompts, *, more: bool = False) -> Reference:
        """Run a batch of one through the unmodified model.

        Args:
            prompts: Of one sample.
            more: Whether one about the same pictures comes next.
        """
        states = self._run(
            input_ids=prompts.input_ids,
            attention_mask=prompts.valid.long(),
            position_ids=given_positions(self.family, prompts),
            use_cache=more,
            **prompts.pixels,
        )
        assert self._capture is not None
        image_mask = prompts.input_ids == self.family.image_token_id
        if self.family.joins_views:
            slots = [row.nonzero().flatten() for row in image_mask]
            join_views(self.family, self._capture, slots, prompts.input_ids)
        blocks = self.family.blocks({"input_ids": prompts.input_ids, **prompts.pixels})
        return self._reference(prompts, states, blocks)

    def _run(self, **inputs: Any) -> Tensor:
        """Return the final states ``[1, S, d]``, and leave on ``self`` what was seen on the way."""
        hooks, base = self._install(), self.family.base
        try:
            final, output = self.family.final_states(inputs)
        finally:
            for hook in hooks:
                hook.remove()
            base.__dict__.pop(self.family.encoder_method, None)
        self._cache = cache_of(output) if inputs["use_cache"] else None
        return final

    def _reference(self, prompts: Prompts, states: Tensor, blocks: Tensor | None) -> Reference:
        assert self._capture is not None
        image_mask = (prompts.input_ids == self.family.image_token_id)[0]
        note_prompt(
            self.family, self._capture.images, prompts.input_ids[0], prompts.valid[0],
            prompts.query[0], image_mask,
        )  # fmt: skip
        reference = Reference(
            query=int(prompts.query),
            answer=prompts.answers[0],
            states={k: states[0] for k, states in self._states.items()},
            taps={},
            embeddings={k: (cos[0], sin[0]) for k, (cos, sin) in self._embeddings.items()},
            position_ids=positions(self.family, prompts)[0],
            image_mask=image_mask,
            images=self._capture.images,
            # A copy: the view would keep the whole sequence's states alive.
            tail=states[0, -prompts.tail :].clone(),
            injected=self._injected,
            blocks=None if blocks is None else blocks[0],
        )
        for k in range(self.deepest):
            reference.taps[k] = self._tap(k, prompts)
        self._states, self._targets, self._masks = {}, {}, {}
        return reference

    def _tap(self, k: int, prompts: Prompts) -> LayerTap:
        tap = LayerTap(self._states[k][0], self._targets[k][0])
        if self._readable:
            tap.row = last_query_row(
                self.family.layers[k],
                self._states[k],
                self._embeddings[self.family.layer_kind(k)],
                self._seen(k, prompts),
                at=prompts.query,
            )[0]
        return tap

    def _seen(self, k: int, prompts: Prompts) -> Tensor:
        """Return which slots the prompt's last token sees at layer ``k``, ``[1, S]`` bool."""
        mask = self._masks.get(k)
        if text_window(self.family.text_model.config) is None or mask is None or mask.dim() != 4:
            return prompts.valid
        return visible(mask)[:, int(prompts.query)]

    def _install(self) -> list[Any]:
        base, layers = self.family.base, self.family.layers
        tap = VisionTap(self.family, self.family.tower_tells() | {"image_seed"})
        hooks = tap.install()
        encode = getattr(base, self.family.encoder_method)
        encode = self._once(encode, wrap_encoder(encode, tap, self._note))
        base.__dict__[self.family.encoder_method] = encode
        text: Any = self.family.text_model
        hooks.append(text.register_forward_pre_hook(self._inject, with_kwargs=True))
        for k in range(self.deepest + 1):
            hooks.append(layers[k].register_forward_pre_hook(self._saving(k), with_kwargs=True))
        for k in range(self.deepest):
            hooks.append(self.family.second_norm(k).register_forward_hook(self._targeting(k)))
        kinds = [self.family.layer_kind(k) for k in range(len(layers))]
        for kind in set(kinds):
            first = layers[kinds.index(kind)]
            hooks.append(first.register_forward_pre_hook(self._turning(kind), with_kwargs=True))
        return hooks

    def _once(self, encode: Any, noting: Any) -> Any:
        """Return ``noting``, which is not called again while its arguments stay the same."""

        @functools.wraps(encode)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            if self._encoded is not None and _equal((args, kwargs), self._encoded[:2]):
                # Memos are a sample's own: some scorers read the question.
                images = [replace(image, memo={}) for image in self._encoded[3]]
                self._capture = VisionCapture(images)
                return self._encoded[2]
            output = noting(*args, **kwargs)
            assert self._capture is not None
            # Views as the encoder saw them: a prompt may join them afterwards.
            self._encoded = (args, kwargs, output, list(self._capture.images))
            return output

        return remembered

    def _note(self, capture: VisionCapture, output: Any) -> None:
        self._capture = capture

    def _inject(self, text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._injected = self.family.injected(kwargs)

    def _saving(self, k: int) -> Any:
        def saving(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = LayerCall.read(args, kwargs)
            self._states[k], self._masks[k] = call.hidden, call.told.mask

        return saving

    def _turning(self, kind: str) -> Any:
        def turning(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._embeddings[kind] = LayerCall.read(args, kwargs).told.rotary

        return turning

    def _targeting(self, k: int) -> Any:
        def targeting(norm: Any, args: tuple[Any, ...], output: Tensor) -> None:
            self._targets[k] = output

        return targeting


def _equal(one: Any, other: Any) -> bool:
    """Tell whether nested arguments hold the same values."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    return type(one) is type(other) and bool(one == other)
