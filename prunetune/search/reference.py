"""What a study computes once: the unpruned reference and the states entering each first layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunetune.calibration import Sample, encode
from prunetune.families import Family
from prunetune.families.base import multimodal_rotary
from prunetune.runtime.suffix import Prefix
from prunetune.runtime.taps import LayerTap, last_query_row
from prunetune.runtime.views import join_views
from prunetune.runtime.vision import VisionCapture, VisionTap, wrap_encoder
from prunetune.tokens import left_pad

TOKEN_KINDS = ("mm_token_type_ids", "token_type_ids")
NEEDS = frozenset({"vision_attention", "vision_map", "patch_entropy", "image_seed"})


@dataclass
class Prompts:
    """A batch of prompts, each followed by its expected answer.

    The answer's tokens come after the prompt, so they change nothing before them; with them one
    forward tells whether greedy decoding would produce exactly that answer.

    Attributes:
        input_ids: ``[B, S]`` int64, left-padded.
        valid: ``[B, S]`` bool.
        query: ``[B]`` int64, slot of each prompt's last token.
        answers: Token ids of each expected answer; None where the sample has none.
        pixels: The encoder's inputs, as the processor made them.
    """

    input_ids: Tensor
    valid: Tensor
    query: Tensor
    answers: list[list[int] | None]
    pixels: dict[str, Any]

    @property
    def tail(self) -> int:
        """Slots from the earliest prompt end to the end of the sequence."""
        return int(self.input_ids.shape[1] - self.query.min())


def prepare(
    processor: Any, samples: Sequence[Sample], device: torch.device, answer_kind: int = 0
) -> Prompts:
    """Tokenise a batch of samples with their answers, whose tokens are of kind ``answer_kind``."""
    inputs = dict(encode(processor, samples))
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
    kinds = {name: inputs.pop(name) for name in TOKEN_KINDS if name in inputs}
    answers = [
        None
        if sample.answer is None
        else list(processor.tokenizer(sample.answer, add_special_tokens=False)["input_ids"])
        for sample in samples
    ]
    rows = [row[m] for row, m in zip(ids, mask, strict=True)]
    full = [torch.cat([r, torch.tensor(a or [], dtype=r.dtype)]) for r, a in zip(rows, answers)]
    padded, valid = left_pad(full)
    behind = torch.tensor([len(a or []) for a in answers])
    for name, kind in kinds.items():
        parts = [
            F.pad(row[m], (0, len(a or [])), value=answer_kind)
            for row, m, a in zip(kind, mask, answers)
        ]
        inputs[name] = left_pad(parts)[0]
    pixels = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    query = padded.shape[1] - 1 - behind
    return Prompts(padded.to(device), valid.to(device), query.to(device), answers, pixels)


@dataclass
class Reference:
    """One batch of calibration samples, unpruned.

    Attributes:
        first: Index of the batch's first sample in the calibration set.
        prompts: The batch.
        states: Decoder layer to the ``[B, S, d]`` states entering it.
        taps: Decoder layer to its tap, for a stage at the next layer.
        embeddings: Rotary cos and sin, by kind of layer.
        position_ids: ``[B, S]`` int64.
        image_mask: ``[B, S]`` bool.
        capture: Of the batch's images.
        tail: ``[B, t, d]`` final states of the last ``t`` slots.
        log_probs: ``[B, vocabulary]`` float32, next token after the prompt.
        correct: Whether greedy decoding gives exactly the expected answer; None without one.
        injected: What the text model adds behind its first layers, see ``Family.injected``.
        blocks: Which tokens attend in both directions, see ``Family.blocks``.
    """

    first: int
    prompts: Prompts
    states: dict[int, Tensor]
    taps: dict[int, LayerTap]
    embeddings: dict[str, tuple[Tensor, Tensor]]
    position_ids: Tensor
    image_mask: Tensor
    capture: VisionCapture
    tail: Tensor
    log_probs: Tensor = field(default_factory=lambda: torch.empty(0))
    correct: list[bool | None] = field(default_factory=list)
    injected: list[Tensor] = field(default_factory=list)
    blocks: Tensor | None = None

    def prefix(self, first_layer: int) -> Prefix:
        """Return what a config whose first stage is at ``first_layer`` starts from."""
        layer = min(first_layer, max(self.states))
        return Prefix(
            layer=layer,
            hidden=self.states[layer],
            embeddings=self.embeddings,
            position_ids=self.position_ids,
            valid=self.prompts.valid,
            image_mask=self.image_mask,
            capture=self.capture,
            query=self.prompts.query,
            tap=self.taps.get(layer - 1) if layer == first_layer else None,
            injected=self.injected,
            blocks=self.blocks,
        )


class Recorder:
    """Runs a model unpruned and remembers what trials will start from.

    Args:
        family: Of the model.
        deepest: Last candidate first layer; the states entering layers 0 .. deepest are kept.
    """

    def __init__(self, family: Family, deepest: int) -> None:
        self.family = family
        self.deepest = min(deepest, len(family.layers) - 1)
        self._states: dict[int, Tensor] = {}
        self._targets: dict[int, Tensor] = {}
        self._embeddings: dict[str, tuple[Tensor, Tensor]] = {}
        self._capture: VisionCapture | None = None
        self._injected: list[Tensor] = []

    def record(self, prompts: Prompts, first: int) -> Reference:
        """Run one batch through the unmodified model."""
        hooks = self._install()
        base = self.family.base
        position_ids = (prompts.valid.long().cumsum(1) - 1).clamp_min(0)
        position_ids += self.family.first_position
        # Multimodal rotary positions are the model's own to find.
        multimodal = multimodal_rotary(self.family.text_model.config)
        try:
            output = base(
                input_ids=prompts.input_ids,
                attention_mask=prompts.valid.long(),
                position_ids=None if multimodal else position_ids,
                use_cache=False,
                **prompts.pixels,
            )
        finally:
            for hook in hooks:
                hook.remove()
            base.__dict__.pop(self.family.encoder_method, None)
        assert self._capture is not None
        tail = output.last_hidden_state[:, -prompts.tail :]
        image_mask = prompts.input_ids == self.family.image_token_id
        if self.family.joins_views:
            slots = [row.nonzero().flatten() for row in image_mask]
            join_views(self.family, self._capture, slots, prompts.input_ids)
        reference = Reference(
            first=first,
            prompts=prompts,
            states=dict(self._states),
            taps={},
            embeddings=dict(self._embeddings),
            position_ids=position_ids,
            image_mask=image_mask,
            capture=self._capture,
            # A copy: the view would keep the whole sequence's states alive.
            tail=tail.clone(),
            injected=self._injected,
            blocks=self.family.blocks({"input_ids": prompts.input_ids, **prompts.pixels}),
        )
        for k in range(self.deepest):
            reference.taps[k] = self._tap(reference, k)
        return reference

    def _tap(self, reference: Reference, k: int) -> LayerTap:
        row = last_query_row(
            self.family.layers[k],
            reference.states[k],
            reference.embeddings[self.family.layer_kind(k)],
            reference.prompts.valid,
            at=reference.prompts.query,
        )
        return LayerTap(reference.states[k], self._targets[k], row)

    def _install(self) -> list[Any]:
        base, layers = self.family.base, self.family.layers
        readable = self.family.vision_attention_module() is not None
        needs = NEEDS if readable else NEEDS - {"vision_attention", "vision_map"}
        tap = VisionTap(self.family, needs)
        hooks = tap.install()
        encode = getattr(base, self.family.encoder_method)
        base.__dict__[self.family.encoder_method] = wrap_encoder(encode, tap, self._note)
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

    def _note(self, capture: VisionCapture, output: Any) -> None:
        self._capture = capture

    def _inject(self, text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._injected = self.family.injected(kwargs)

    def _saving(self, k: int) -> Any:
        def saving(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._states[k] = args[0] if args else kwargs["hidden_states"]

        return saving

    def _turning(self, kind: str) -> Any:
        def turning(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._embeddings[kind] = kwargs["position_embeddings"]

        return turning

    def _targeting(self, k: int) -> Any:
        def targeting(norm: Any, args: tuple[Any, ...], output: Tensor) -> None:
            self._targets[k] = output

        return targeting
