"""Hooks on, hooks off: a config applied to a model, and what its forwards share."""

import functools
import inspect
import logging
import threading
from collections import deque
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.families import Family
from prunetune.release import LayerCall, cache_of, check_names, warn_of_version
from prunetune.runtime.cache import check_whole, note_failed
from prunetune.runtime.captures import Captures, Step, given_to, placeholder_mask
from prunetune.runtime.compiled import forget_compiled
from prunetune.runtime.frame import Frame
from prunetune.runtime.plan import Plan
from prunetune.runtime.promises import Suspicion, check_cache
from prunetune.runtime.trace import ForwardTrace
from prunetune.runtime.views import token_labels
from prunetune.runtime.vision import VisionCapture, VisionTap, wrap_encoder
from prunetune.scorers.base import LAYER_NEEDS

FRAME = "_prunetune_frame"
MARK = "_prunetune_handle"
POSITIONS = "position_ids"

logger = logging.getLogger(__name__)


class Handle:
    """An applied pruning config.

    Attributes:
        config: The config.
        trace: The last forwards with images, most recent last.
    """

    def __init__(self, family: Family, config: PruningConfig) -> None:
        self.config = config
        self.trace: deque[ForwardTrace] = deque(maxlen=16)
        self.plan = Plan(family, config)
        self._local = threading.local()
        self._hooks: list[Any] = []
        self._captures = Captures()
        self._overridden: dict[str, Any] = {}
        self._unfollow: Any = None
        self._warned = False
        base = family.base
        if MARK in base.__dict__:
            raise ConfigError(
                "the model has a pruning config applied already; remove that handle first"
            )
        warn_of_version()
        check_names(base, family.layers[0])
        self._tap = VisionTap(family, self.plan.needs)
        self._signature = inspect.signature(base.forward)
        self._encodes_once = "mm_encoder_outputs" in self._signature.parameters
        try:
            self._install(family, base)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> "Handle":
        applied: object = self.plan.family.base.__dict__.get(MARK)
        if applied is not self:
            raise ConfigError("this handle was removed, so nothing would be pruned: apply again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.remove()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ConfigError(
            "the model has a pruning config applied, whose hooks would stay tied to this model: "
            "remove the handle before copying or pickling the model, then apply to the copy"
        )

    def remove(self) -> None:
        """Leave the model exactly as it was found; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._unfollow is not None:
            self._unfollow()
            self._unfollow = None
        base = self.plan.family.base
        if base.__dict__.get(MARK) is self:
            del base.__dict__[MARK]
            for method in self.plan.family.encoders.values():
                base.__dict__.pop(method, None)
            base.__dict__.update(self._overridden)
            forget_compiled()

    def _install(self, family: Family, base: nn.Module) -> None:
        base.__dict__[MARK] = self
        for modality, method in family.encoders.items():
            # Somebody else's override on the instance comes back afterwards.
            if method in base.__dict__:
                self._overridden[method] = base.__dict__[method]
            base.__dict__[method] = wrap_encoder(
                getattr(base, method), self._tap, self._noting_captures(modality), modality
            )
        self._hooks += self._tap.install()
        self._unfollow = family.follow(self._survivors)
        if family.model is not base:
            self._hooks.append(
                family.model.register_forward_pre_hook(self._note_tail, with_kwargs=True)
            )
        text = family.text_model
        self._hooks.append(text.register_forward_pre_hook(self._note_positions, with_kwargs=True))
        self._hooks.append(base.register_forward_pre_hook(self._open, with_kwargs=True))
        self._hooks.append(base.register_forward_hook(self._close, always_call=True))
        first = min([s.layer for s in self.plan.stages] + list(self.plan.tapped))
        for k, layer in enumerate(family.layers):
            if k >= first:
                self._hooks.append(
                    layer.register_forward_pre_hook(self._entering(k), with_kwargs=True)
                )
        for k in self.plan.norm_layers:
            self._hooks.append(family.second_norm(k).register_forward_hook(self._noting(k)))
        forget_compiled()

    # -- hooks -------------------------------------------------------------------------

    @property
    def frames(self) -> list[Frame]:
        """The forwards under way on this thread, innermost last."""
        if not hasattr(self._local, "frames"):
            self._local.frames = []
        frames: list[Frame] = self._local.frames
        return frames

    def _survivors(self) -> tuple[Tensor, Tensor] | None:
        segment = self.frames[-1].segment if self.frames else None
        if segment is None or segment.index is None:
            return None
        return segment.index, segment.valid

    def _noting_captures(self, modality: str) -> Any:
        def note(capture: VisionCapture, output: Any) -> None:
            self._captures.note(modality, capture, output)
            if self.frames:
                first = self._captures.first_of(modality, capture)
                self.frames[-1].captures[modality] = first

        return note

    def _note_tail(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wanted = kwargs.get("logits_to_keep")
        self._local.wanted = wanted if isinstance(wanted, int) else 0

    @property
    def _suspicion(self) -> Suspicion:
        if not hasattr(self._local, "suspicion"):
            self._local.suspicion = Suspicion()
        suspicion: Suspicion = self._local.suspicion
        return suspicion

    def _note_positions(
        self, text: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # Multimodal ones are not told to the layers, which get cos and sin.
        if self.frames:
            self.frames[-1].positions = kwargs.get(POSITIONS)

    def _open(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # First of all: ``_close`` drops the last frame, also after an error here. It is not called
        # after a KeyboardInterrupt, whose frame would keep a cache alive.
        self.frames.clear()
        self.frames.append(frame := Frame(self.plan, None))
        self._suspicion.settle()
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        bound = bound | bound.get("kwargs", {})
        frame.given = cache = cache_of(bound)
        wanted = getattr(self._local, "wanted", 0)
        self._local.wanted = 0
        ids = bound.get("input_ids")
        frame.attention_mask = self._mask_of_layer_0(bound.get("attention_mask"))
        frame.input_ids = ids
        frame.chosen_positions = bound.get(POSITIONS) is not None
        # Assisted decoding prefills candidates behind the prompt and asks for all their logits:
        # the first of these is the last prompt token's.
        frame.tail = max(0, wanted - 1)
        frame.past = 0 if cache is None else int(cache.get_seq_length())
        check_whole(cache, frame.past)
        merged = self._find_images(frame, bound, wanted)
        if merged:
            return (), {k: v for k, v in bound.items() if k not in ("input_ids", "kwargs")}
        if frame.past and self.plan.stages[0].layer == 0 and "token_type_ids" in kwargs:
            # Before transformers 5.18 the model looks for them by the place in the sequence, which
            # lies behind the end of a cache that holds less. All masks are made here anyway.
            return args, kwargs | {"token_type_ids": None}
        return None

    def _find_images(self, frame: Frame, bound: dict[str, Any], wanted: int) -> bool:
        """Find out where a forward's images are, and what is known of them.

        Returns:
            Whether their features were merged into the embeddings by the caller, who gave the ids
            too: places are known by these, and the model takes only one of both.
        """
        encoded, pixels = given_to(self.plan.family, bound)
        given = [m for m in self.plan.family.encoders if m in {**encoded, **pixels}]
        ids, first = bound.get("input_ids"), not frame.past and frame.given is None
        step = wanted == 1 and first and ids is not None and not self._encodes_once
        self._captures.step = Step(pixels, ids.shape[1]) if step and pixels else None
        captures = {
            modality: self._captures.of(modality, features)
            for modality, features in encoded.items()
        }
        merged = not given and ids is not None and bound.get("inputs_embeds") is not None
        if merged and ids.shape[1] > 1:
            captures = self._merged(bound)
            given = list(captures)
        for modality, capture in captures.items():
            # Another config may have been applied when they were computed.
            if capture is not None and self.plan.needs - LAYER_NEEDS <= capture.needs:
                frame.captures[modality] = capture
        masks = {
            modality: placeholder_mask(self.plan.family, bound, modality) for modality in given
        }
        if given:
            frame.image_mask = functools.reduce(torch.logical_or, masks.values())
            frame.video_mask = masks.get("video")
            self.plan.family.blocks(bound)
            frame.labels = self._labels(bound)
        elif wanted == 1 and not merged and ids is not None and ids.shape[1] > 1:
            self._check_whole(ids)
        else:
            self._warn_of_merged(bound)
        # Multimodal positions are found by the ids, and such a model says itself what it lacks.
        return merged and (frame.chosen_positions or not self.plan.family.multimodal_positions)

    def _merged(self, bound: dict[str, Any]) -> dict[str, VisionCapture | None]:
        """Return what is known of features that the caller has merged into the embeddings."""
        found: dict[str, VisionCapture | None] = {}
        for modality in self.plan.family.encoders:
            mask = placeholder_mask(self.plan.family, bound, modality)
            if bool(mask.any()):
                embeds = bound["inputs_embeds"]
                found[modality] = self._captures.merged(modality, embeds, mask.to(embeds.device))
        if any(capture is None for capture in found.values()):
            return {}
        return found

    def _warn_of_merged(self, bound: dict[str, Any]) -> None:
        """Say once that a forward's images, if it has any, cannot be pruned."""
        embeds = bound.get("inputs_embeds")
        if self._warned or embeds is None or embeds.shape[1] == 1:
            return
        self._warned = True
        logger.warning(
            "a forward got inputs_embeds of %d tokens and no pixels: images that are merged in "
            "them are not pruned; pass input_ids and pixels, or input_ids beside inputs_embeds "
            "whose features the model's own %s computed under this config",
            embeds.shape[1],
            self.plan.family.encoder_method,
        )

    def _mask_of_layer_0(self, mask: Any) -> Any:
        """Return the caller's mask, of several by kind of layer the one that layer 0 would get.

        Only layer 0 tells how long the sequence is; masks of other kinds may be sized by layers
        that hold fewer tokens.
        """
        return mask.get(self.plan.family.layer_kind(0)) if isinstance(mask, dict) else mask

    def _labels(self, bound: dict[str, Any]) -> Tensor | None:
        if not self.plan.family.joins_views:
            return None
        ids: Tensor | None = bound.get("input_ids")
        return token_labels(bound["inputs_embeds"]) if ids is None else ids

    def _check_whole(self, input_ids: Tensor) -> None:
        """Raise if a part of a prompt, as ``generate`` passes it, holds images without pixels.

        Before transformers 5.23 chunks of a prompt lose their images, in silence.
        """
        for token in self.plan.family.placeholders.values():
            if bool(input_ids.eq(token).any()):
                raise UnsupportedModelError(
                    "a part of the prompt has image tokens, but came without its images: "
                    "pass their pixels and leave prefill_chunk_size, which is not supported, "
                    "unset; or this model is an assistant, which is given none: apply nothing to it"
                )

    def _close(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        frame = self.frames.pop()
        if output is None:
            note_failed(frame.given, frame.past)
            return None
        try:
            if frame.started:
                check_cache(frame.cache, frame.past, frame.given, output)
            if frame.segment is None:
                return None
            frame.finish()
            if frame.wrong is not None:
                self._suspicion.note(frame.wrong)
        except BaseException:
            note_failed(frame.cache, frame.past)
            raise
        if frame.trace is not None:
            self.trace.append(frame.trace)
        if isinstance(output, tuple):
            return (frame.restore_length(output[0]), *output[1:])
        output.last_hidden_state = frame.restore_length(output.last_hidden_state)
        return output

    def _entering(self, index: int) -> Any:
        def entering(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if not self.frames and not layer.training:
                return None
            call = LayerCall.read(args, kwargs)
            mark = call.told.rotary[0]
            if self.frames:
                frame = self.frames[-1]
                enter = frame.enter
                if layer.training and getattr(layer, "gradient_checkpointing", False):
                    setattr(mark, FRAME, frame)
            elif hasattr(mark, FRAME):
                # Before transformers 5.23 a checkpoint runs the hooks again in the backward pass.
                enter = getattr(mark, FRAME).enter_again
            else:
                return None
            return call.with_(*enter(index, call))

        return entering

    def _noting(self, index: int) -> Any:
        def noting(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.frames:
                self.frames[-1].note_target(index, output)

        return noting
