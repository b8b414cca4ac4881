"""Hooks on, hooks off: a config applied to a model, and what its forwards share."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from torch import Tensor, nn

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.families import Family
from prunetune.release import LayerCall, check_names, warn_of_version
from prunetune.runtime.choice.plan import Plan
from prunetune.runtime.compiled import forget_compiled
from prunetune.runtime.copies import Before
from prunetune.runtime.frame import Frame
from prunetune.runtime.inputs import POSITIONS, Inputs
from prunetune.runtime.layers.cache import note_failed
from prunetune.runtime.layers.widened import check_read, widen
from prunetune.runtime.promises import Suspicion, check_cache
from prunetune.runtime.trace import ForwardTrace
from prunetune.runtime.vision.captures import Captures
from prunetune.runtime.vision.forward import Forward
from prunetune.runtime.vision.tower import VisionCapture, VisionTap, wrap_encoder
from prunetune.runtime.vision.views import find_images

FRAME = "_prunetune_frame"
MARK = "_prunetune_handle"


class Handle:
    """An applied pruning config.

    Args:
        family: View of the model.
        config: The config.
        undo: What else is undone when it is removed: pictures are not made smaller any more.

    Attributes:
        config: The config.
        trace: The last forwards with images, most recent last.
    """

    def __init__(
        self, family: Family, config: PruningConfig, undo: Callable[[], None] | None = None
    ) -> None:
        self.config = config
        self._undo = undo
        self.trace: deque[ForwardTrace] = deque(maxlen=16)
        self.plan = Plan(family, config)
        self._local = threading.local()
        self._hooks: list[Any] = []
        self._captures = Captures(family.features)
        self._overridden: dict[str, Any] = {}
        self._undone: list[Callable[[], None]] = []
        self._unwiden: Any = None
        self._unwatch: Any = None
        base = family.base
        if MARK in base.__dict__:
            raise ConfigError(
                "the model has a pruning config applied already; remove that handle first"
            )
        warn_of_version()
        check_names(base, family.layers[0])
        self._tap = VisionTap(family, self.plan.needs)
        self._inputs = Inputs(self.plan, self._captures)
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
            "a handle belongs to one model and is not copied or pickled: copy the model, and apply "
            "the config to the copy"
        )

    def remove(self) -> None:
        """Leave the model exactly as it was found; a second call does nothing."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        while self._undone:
            self._undone.pop()()
        if self._undo is not None:
            self._undo()
            self._undo = None
        if self._unwiden is not None:
            self._unwiden()
            self._unwiden = None
        base = self.plan.family.base
        if base.__dict__.get(MARK) is self:
            del base.__dict__[MARK]
            for method in self.plan.family.encoders.values():
                base.__dict__.pop(method, None)
            base.__dict__.update(self._overridden)
            forget_compiled()

    def _install(self, family: Family, base: nn.Module) -> None:
        before = Before(family.model)
        base.__dict__[MARK] = self
        for modality, method in family.encoders.items():
            # Somebody else's override on the instance comes back afterwards.
            if method in base.__dict__:
                self._overridden[method] = base.__dict__[method]
            base.__dict__[method] = wrap_encoder(
                getattr(base, method), self._tap, self._noting_captures(modality), modality
            )
        self._hooks += self._tap.install()
        self._undone += [family.follow(self._survivors), family.number(self._tokens)]
        if family.model is not base:
            self._hooks.append(
                family.model.register_forward_pre_hook(self._note_tail, with_kwargs=True)
            )
        if self.plan.widens:
            self._unwiden = widen(list(family.layers)[self.plan.stages[0].layer :])
        text = family.text_model
        self._hooks.append(text.register_forward_pre_hook(self._note_positions, with_kwargs=True))
        if family.base_has_head:
            self._hooks.append(text.register_forward_hook(self._restore))
        self._hooks.append(base.register_forward_pre_hook(self._open, with_kwargs=True))
        self._hooks.append(base.register_forward_hook(self._close, always_call=True))
        depth = len(family.layers)
        first = min([s.layer for s in self.plan.stages] + list(self.plan.tapped), default=depth)
        for k, layer in enumerate(family.layers):
            if k >= first:
                self._hooks.append(
                    layer.register_forward_pre_hook(self._entering(k), with_kwargs=True)
                )
        for k in self.plan.norm_layers:
            self._hooks.append(family.second_norm(k).register_forward_hook(self._noting(k)))
        self._unwatch = before.watch(self._hooks, base)
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

    def _tokens(self) -> Tensor | None:
        frame = self.frames[-1] if self.frames else None
        if frame is None or frame.segment is None:
            return None
        return frame.segment.tokens(frame.call.past)

    def _noting_captures(self, modality: str) -> Any:
        def note(capture: VisionCapture, output: Any) -> None:
            self._captures.note(modality, capture, output)
            if self.frames:
                first = self._captures.first_of(modality, capture)
                self.frames[-1].call.captures[modality] = first

        return note

    def _note_tail(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wanted = kwargs.get("logits_to_keep")
        self._local.wanted = wanted if isinstance(wanted, int) else 0

    def _note_positions(
        self, text: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # Multimodal ones are not told to the layers, which get cos and sin.
        if self.frames:
            self.frames[-1].call.positions = kwargs.get(POSITIONS)

    @property
    def _suspicion(self) -> Suspicion:
        if not hasattr(self._local, "suspicion"):
            self._local.suspicion = Suspicion()
        suspicion: Suspicion = self._local.suspicion
        return suspicion

    def _open(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # First of all: ``_close`` drops the last frame, also after an error here. It is not called
        # after a KeyboardInterrupt, whose frame would keep a cache alive.
        self.frames.clear()
        self.frames.append(Frame(self.plan, Forward()))
        self._suspicion.settle()
        if base is self.plan.family.model:
            self._note_tail(base, args, kwargs)
        wanted, self._local.wanted = getattr(self._local, "wanted", 0), 0
        self.frames[-1].call, instead = self._inputs.read(args, kwargs, wanted)
        return instead

    def _close(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        frame = self.frames.pop()
        if output is None:
            note_failed(frame.call.cache, frame.call.past)
            return None
        try:
            if frame.started:
                check_cache(frame.cache, frame.call.past, frame.call.cache, output)
            if frame.segment is None:
                if frame.prunes and not self.plan.stages:
                    # Pictures are smaller, and that is all: for who asks how many tokens they took.
                    self.trace.append(find_images(self.plan.family, frame.call, None)[1])
                return None
            if self.plan.widens:
                told = [one for part in frame.segments for one in part.inputs.values()]
                check_read([one.bias for one in told])
            frame.finish()
            if frame.wrong is not None:
                self._suspicion.note(frame.wrong)
        except BaseException:
            note_failed(frame.cache, frame.call.past)
            raise
        if frame.trace is not None:
            self.trace.append(frame.trace)
        return output if self.plan.family.base_has_head else _restored(frame, output)

    def _restore(self, text: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _restored(self.frames[-1], output) if self.frames else output

    def _entering(self, index: int) -> Any:
        def entering(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if not self.frames and not layer.training:
                return None
            call = LayerCall.read(args, kwargs)
            mark = call.mark
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


def _restored(frame: Frame, output: Any) -> Any:
    """Return a model's output with final states of all slots."""
    if isinstance(output, tuple):
        return (frame.restore_length(output[0]), *output[1:])
    output.last_hidden_state = frame.restore_length(output.last_hidden_state)
    return output
