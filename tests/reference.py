"""An independent reference for pruning.

It runs the *full-length* sequence and masks the dropped tokens as keys from their stage's layer on,
through pre-hooks of its own. It shares no code with ``prunetune``: of a pruned run it takes the
keep indices only.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from reference_models import LAYERS, Batch, family
from torch import Tensor
from transformers import DynamicCache

import prunetune
from prunetune.config import PruningConfig


def alive_slots(shape: tuple[int, int], *passes: tuple[int, Any]) -> Tensor:
    """Return which slots are keys at each layer, ``[LAYERS, B, S]`` bool.

    Args:
        shape: ``(B, S)`` of the whole conversation.
        passes: ``(offset of the forward's first slot, its trace)`` of every forward that pruned.
    """
    alive = torch.ones(LAYERS, *shape, dtype=torch.bool)
    for offset, trace in passes:
        for stage in trace.stages:
            for row, (slots, kept) in enumerate(zip(trace.image_slots, stage.kept)):
                alive[stage.layer :, row, slots + offset] = False
                alive[stage.layer :, row, kept + offset] = True
    return alive


@contextmanager
def masked(
    model: Any,
    valid: Tensor,
    alive: Tensor,
    *,
    packed: bool = False,
    rewrite: dict[int, Callable[[Tensor], Tensor]] | None = None,
) -> Iterator[None]:
    """Make cache-less forwards of ``model`` mask what is not alive.

    Args:
        model: The model, unpruned.
        valid: ``[B, S]`` bool, False for padding. Later slots and beams are derived.
        alive: ``[LAYERS, B, S]`` bool.
        packed: Number positions over the slots alive at layer 0.
        rewrite: New states of a layer's input (what a restorer does), by layer.
    """
    spec, seen = family(model), {}
    text = spec.text_model(model)
    if spec.hybrid:
        with removed(model, valid, alive, packed=packed, rewrite=rewrite):
            yield
        return

    def fit(mask: Tensor, shape: torch.Size) -> Tensor:
        mask = mask.repeat_interleave(shape[0] // mask.shape[0], 0)
        return torch.nn.functional.pad(mask, (0, shape[1] - mask.shape[1]), value=True)

    def ids(_: Any, args: Any, kwargs: Any) -> None:
        seen["ids"] = args[0] if args else kwargs.get("input_ids")

    def positions(_: Any, args: Any, kwargs: Any) -> Any:
        assert kwargs.get("past_key_values") is None, "the reference recomputes everything"
        numbered = valid & alive[0] if packed else valid
        numbered = fit(numbered, kwargs["inputs_embeds"].shape)
        numbers = spec.positions(model, numbered)
        return args, kwargs if numbers is None else kwargs | {"position_ids": numbers}

    def mask(layer: int, _: Any, args: Any, kwargs: Any) -> Any:
        states = rewrite[layer](args[0]) if rewrite and layer in rewrite else args[0]
        # Some models compute only the last states of their last layers.
        shape = states.shape if seen["ids"] is None else seen["ids"].shape
        keys = fit(valid & alive[layer], shape)
        near = spec.near(model, layer, fit(valid, shape))
        allowed = spec.allowed(model, seen["ids"], keys, valid.shape[1], near, layer)
        allowed = (allowed | torch.eye(shape[1], dtype=torch.bool))[:, -states.shape[1] :]
        additive = torch.zeros(allowed.shape, dtype=states.dtype)
        additive = additive.masked_fill(~allowed, torch.finfo(states.dtype).min)[:, None]
        return (states, *args[1:]), kwargs | {"attention_mask": additive}

    with ExitStack() as stack:
        for module, look in ((getattr(model, "model", model), ids), (text, positions)):
            hook = module.register_forward_pre_hook(look, with_kwargs=True)
            stack.callback(hook.remove)
        for i, layer in enumerate(text.layers):
            hook = layer.register_forward_pre_hook(lambda *a, i=i: mask(i, *a), with_kwargs=True)
            stack.callback(hook.remove)
        yield


@contextmanager
def removed(
    model: Any,
    valid: Tensor,
    alive: Tensor,
    *,
    packed: bool = False,
    rewrite: dict[int, Callable[[Tensor], Tensor]] | None = None,
) -> Iterator[None]:
    """Make cache-less forwards of ``model`` run each row by itself, without what is not alive.

    For models with layers that carry a state, in which nothing can be masked: their text model is
    given the embeddings that are left, with the positions that they had. See ``masked``.
    """
    text = family(model).text_model(model)
    assert torch.equal(alive, alive[:1].expand_as(alive)), "tokens left behind layer 0"
    assert set(rewrite or {}) <= {0}

    def forward(**given: Any) -> Any:
        states, positions = given["inputs_embeds"], given.get("position_ids")
        states = rewrite[0](states) if rewrite else states
        keys = (valid & alive[0]).repeat_interleave(states.shape[0] // valid.shape[0], 0)
        keys = torch.nn.functional.pad(keys, (0, states.shape[1] - keys.shape[1]), value=True)
        whole = torch.nn.functional.pad(
            valid.repeat_interleave(len(keys) // len(valid), 0),
            (0, states.shape[1] - valid.shape[1]), value=True,
        )  # fmt: skip
        out = torch.zeros_like(states)
        for row, key in enumerate(keys):
            if positions is None or positions.dim() == 2:
                numbered = key if packed else whole[row]
                own = (numbered.cumsum(0) - 1)[None]
            else:
                # Without the row of plain positions, whose gaps would be read as several samples.
                own = positions[-3:, row % positions.shape[1], None]
            ones = torch.ones(1, int(key.sum()), dtype=torch.long)
            out[row, key] = original(
                inputs_embeds=states[row : row + 1, key], position_ids=own[..., key],
                attention_mask=ones, use_cache=False,
            ).last_hidden_state[0]  # fmt: skip
        return type(original(inputs_embeds=states[:1, -1:], use_cache=False))(last_hidden_state=out)

    original = text.forward
    text.forward = forward
    try:
        yield
    finally:
        del text.forward


@torch.no_grad()
def reference_logits(
    model: Any, batch: Batch, alive: Tensor, tokens: Tensor | None = None, **options: Any
) -> Tensor:
    """Return the logits of the prompt and ``tokens`` (``[B, T]``) in one run without a cache."""
    inputs = dict(batch.inputs)
    if tokens is not None:
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat([mask, torch.ones_like(tokens)], 1)
        for name in inputs.keys() - {"input_ids", "attention_mask", *family(model).visual_inputs}:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, tokens.shape[1]))
    with masked(model, batch.valid, alive, **options):
        return model(**inputs, use_cache=False).logits


@dataclass(frozen=True)
class Measured:
    """How far a pruned run is from the reference; every field is a maximum over the batch."""

    prefill: float
    decode: float
    tokens_agree: bool
    kv: list[int]
    trace: Any
    moved: float

    @property
    def worst(self) -> float:
        return max(self.prefill, self.decode if self.tokens_agree else torch.inf)


@torch.no_grad()
def measure(model: Any, config: PruningConfig, batch: Batch, steps: int = 10) -> Measured:
    """Prune a prefill and a greedy decoding of ``steps`` tokens, and compare with the reference."""
    plain = copy.deepcopy(model)
    with prunetune.apply(model, config) as handle:
        output = model(**batch.inputs, use_cache=True, **new_cache(model))
        layers = output.past_key_values.layers
        kv = [layer.keys.shape[-2] for layer in layers if getattr(layer, "keys", None) is not None]
        trace = handle.trace[-1]
        generated = model.generate(
            **batch.inputs, max_new_tokens=steps, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        again = handle.trace[-1]
    tokens = generated.sequences[:, batch.length :]
    # Positions of padded rows differ between the two: rounding may decide between equal scores.
    alive, kept = (alive_slots(tuple(batch.valid.shape), (0, t)) for t in (trace, again))
    packed = config.positions == "packed"
    reference = reference_logits(plain, batch, kept, tokens, packed=packed)
    decoded = reference[:, batch.length - 1 : -1]
    if not torch.equal(alive, kept):
        reference = reference_logits(plain, batch, alive, packed=packed)
    survives = batch.valid & alive[-1]
    suppressed = torch.tensor(plain.generation_config.suppress_tokens)
    chosen = decoded.index_fill(-1, suppressed, -torch.inf).argmax(-1)
    unpruned = plain(**batch.inputs).logits
    return Measured(
        prefill=worst(output.logits[survives], reference[:, : batch.length][survives]),
        decode=worst(torch.stack(generated.logits, 1), decoded),
        tokens_agree=torch.equal(tokens, chosen),
        kv=kv,
        trace=trace,
        moved=worst(output.logits[:, -1], unpruned[:, -1]),
    )


def new_cache(model: Any) -> dict[str, Any]:
    """Return a cache for a forward, as an argument, where the model makes none by itself."""
    return {} if family(model).makes_cache else {"past_key_values": DynamicCache()}


def worst(one: Tensor, two: Tensor) -> float:
    """Return the largest absolute difference."""
    return (one.float() - two.float()).abs().max().item()
