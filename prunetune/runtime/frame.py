"""One forward's bookkeeping: which slots are alive, and what later layers must be told."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunetune.models.devices import brought
from prunetune.runtime.cache import (
    STATE,
    CacheState,
    count_dropped,
    extend_prefix,
    follow_rows,
    physical_length,
    state_of,
)
from prunetune.runtime.choose import choose
from prunetune.runtime.compiled import never_compiled
from prunetune.runtime.images import ImageTokens, assign_images, stage_trace
from prunetune.runtime.masks import cached_slots, check_window, new_slots, segment_mask
from prunetune.runtime.plan import Plan
from prunetune.runtime.positions import packed_ids, prompt_end, rows_of
from prunetune.runtime.segment import Move, Segment, places
from prunetune.runtime.taps import LayerTap, tap_layer
from prunetune.runtime.trace import ForwardTrace
from prunetune.runtime.views import join_views
from prunetune.runtime.vision import VisionCapture
from prunetune.tokens import left_pad


@dataclass
class Frame:
    """State of one forward under a pruning config; never shared between forwards or threads.

    Attributes:
        plan: The config, resolved for the model.
        image_mask: ``[B, S]`` bool, True at the tokens of images and videos; None when the forward
            has neither.
        video_mask: ``[B, S]`` bool, True at those of videos; None when it has no videos.
        attention_mask: What the caller passed for layer 0: None, 2-D or 4-D.
        input_ids: ``[B, S]``, where passed.
        labels: ``[B, S]`` int64, equal where tokens are equal; None where nobody asks.
        captures: Of the encoder calls that belong to this forward, by modality.
        query: ``[B]`` int64, the slot whose attention row scorers get; None: the last real one.
        past: Tokens seen over the cache before this forward, dropped ones included. Read before any
            layer runs: by the first stage's layer, the layers below have grown already.
        tail: Tokens after the prompt's last one, that a caller wants checked (assisted decoding).
        home: The device of the states that entered the first layer seen: of all bookkeeping.
        memoise: Whether captures live on and may keep scores (a search's trials).
        blocks: ``[B, S]`` int64, tokens of one number attend to one another in both directions,
            -1 attends causally; None: all of them do.
    """

    plan: Plan
    image_mask: Tensor | None
    attention_mask: Any = None
    input_ids: Tensor | None = None
    labels: Tensor | None = None
    captures: dict[str, VisionCapture] = field(default_factory=dict)
    video_mask: Tensor | None = None
    cache: Any = None
    state: CacheState | None = None
    segment: Segment | None = None
    stage: int = -1
    taps: dict[int, LayerTap] = field(default_factory=dict)
    rows: list[list[ImageTokens]] = field(default_factory=list)
    alive: Tensor | None = None
    trace: ForwardTrace | None = None
    segments: list[Segment] = field(default_factory=list)
    packed: Tensor | None = None
    past: int = 0
    length: int = 0
    started: bool = False
    replay: bool = False
    query: Tensor | None = None
    tail: int = 0
    memoise: bool = False
    blocks: Tensor | None = None
    valid: Tensor = field(default_factory=lambda: torch.empty(0))
    padded: bool = False
    home: Any = None

    @property
    def prunes(self) -> bool:
        """Whether this forward carries images."""
        return self.image_mask is not None

    @property
    def capture(self) -> VisionCapture | None:
        """The capture that remembers what was decided; there is one wherever tokens can go."""
        return next(iter(self.captures.values()), None)

    # -- entering layers -----------------------------------------------------------------

    def enter(
        self, index: int, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Do what is due before decoder layer ``index`` and return its new inputs."""
        if not self.started:
            self._start(hidden, kwargs)
        if (
            self.stage + 1 < len(self.plan.stages)
            and self.plan.stages[self.stage + 1].layer == index
        ):
            hidden = self._begin_stage(index, hidden)
        if self.segment is not None:
            kwargs = self._substitute(index, hidden, kwargs)
        if self.prunes and index in self.plan.tapped:
            self.taps[index] = tap_layer(self, index, hidden, kwargs)
        return hidden, kwargs

    def enter_again(
        self, index: int, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Do the same for a checkpointed layer that the backward pass recomputes."""
        layers = [stage.layer for stage in self.plan.stages if stage.layer <= index]
        if not layers or len(self.segments) < len(layers):
            return hidden, kwargs
        segment = self.segments[len(layers) - 1]
        if layers[-1] == index:
            hidden = segment.move(hidden)
        return hidden, kwargs | segment.inputs[self.plan.family.layer_kind(index)]

    def _start(self, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        self.started = True
        self.cache = kwargs.get("past_key_values")
        self.length = hidden.shape[1]
        # Layers may be on several devices: everything is decided where the first states are.
        self.home = hidden.device
        for name in ("image_mask", "video_mask", "labels", "blocks", "attention_mask"):
            setattr(self, name, brought(getattr(self, name), self.home))
        if self.cache is not None:
            self.state = state_of(self.cache, self.plan.digest, self.past)
        if self.prunes or self.state:
            check_window(self.plan.family.text_model.config, self.past + self.length)
        if self.blocks is not None:
            # Token types may end before the tokens do; transformers takes the rest for causal.
            missing = self.length - self.blocks.shape[1]
            self.blocks = torch.nn.functional.pad(self.blocks, (0, missing), value=-1)
        self.valid = new_slots(self.attention_mask, hidden, self.past)
        # One-token steps are never padding: no device sync while decoding.
        self.padded = self.length > 1 and not bool(self.valid.all())
        self.alive = self.valid.clone()
        if self.image_mask is not None and self.capture is not None:
            if self.input_ids is not None and self.cache is None:
                self.replay = self.capture.repeats(self.input_ids)
            if self.query is None:
                tail = self.tail
                if self.replay and self.capture.prompt is not None:
                    tail = self.length - self.capture.prompt.shape[1]
                self.query = prompt_end(self.valid, self.image_mask, tail)

    # -- stages --------------------------------------------------------------------------

    def _begin_stage(self, index: int, hidden: Tensor) -> Tensor:
        self.stage += 1
        hidden = brought(hidden, self.home)
        if self.prunes:
            hidden = self._prune(index, hidden)
        elif self.state is not None:
            self.segment = Segment(index=None, valid=self.valid, padded=self.padded)
        if self.segment is not None:
            batch = hidden.shape[0]
            self.segment.past = past = physical_length(self.cache, index)
            self.segment.prefix = (
                cached_slots(self.attention_mask, past, self.length, batch)
                if self.state is None
                else self.state.rows(self.stage, batch)
            )
            self.segments.append(self.segment)
        return hidden

    @never_compiled
    def _prune(self, index: int, hidden: Tensor) -> Tensor:
        assert self.alive is not None
        if not self.rows:
            self._assign_images()
        stage = self.plan.stages[self.stage]
        place = places(self.segment, hidden, self.length)
        before = [sum(len(image.alive) for image in row) for row in self.rows]
        tap = self.taps.pop(index - 1, None)
        if tap is not None:
            tap = LayerTap(*brought((tap.source, tap.target, tap.row), self.home))
        move = Move(choose(self, stage, hidden, place, tap))
        after = [sum(len(image.alive) for image in row) for row in self.rows]
        if before == after:
            # Nothing to move: the states stay where they are, at no cost.
            now = self.segment
            self.segment = Segment(
                index=None if now is None else now.index,
                valid=self.valid if now is None else now.valid,
                padded=self.padded if now is None else now.padded,
                move=move,
            )
        else:
            slots, valid = left_pad([row.nonzero().flatten() for row in self.alive])
            move.index = place.gather(1, slots)
            self.segment = Segment(slots, valid, padded=not bool(valid.all()), move=move)
        assert self.trace is not None
        self.trace.stages.append(stage_trace(stage.layer, before, after, self.rows))
        return move(hidden)

    def _assign_images(self) -> None:
        assert self.image_mask is not None
        mask = self.image_mask & self.valid
        slots = [row.nonzero().flatten() for row in mask]
        if self.plan.family.joins_views and "image" in self.captures:
            join_views(self.plan.family, self.captures["image"], slots, self.labels)
        self.rows = assign_images(mask, self.video_mask, self.captures)
        self.trace = ForwardTrace(
            slots,
            [[len(i.slots) for i in row] for row in self.rows],
            [[i.capture.geometry for i in row] for row in self.rows],
        )

    # -- what later layers are told --------------------------------------------------------

    def _substitute(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        segment = self.segment
        assert segment is not None
        kind = self.plan.family.layer_kind(index)
        if kind not in segment.inputs:
            hidden = brought(hidden, self.home)
            config = self.plan.family.text_model.config
            segment.inputs[kind] = {
                "attention_mask": segment_mask(
                    config, hidden, segment, self.cache, index, self.blocks
                ),
                "position_embeddings": self._embeddings(index, hidden, kwargs),
                # Gapped position ids would be read as packed sequences (runtime-notes 4.5).
                "position_ids": None,
            }
        return kwargs | segment.inputs[kind]

    def _embeddings(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        assert self.segment is not None
        embeddings: tuple[Tensor, ...] = brought(kwargs["position_embeddings"], self.home)
        if self.plan.packed:
            if self.packed is None:
                batch = hidden.shape[0]
                self.packed = packed_ids(
                    brought(kwargs["position_ids"], self.home).expand(batch, -1),
                    None if self.state is None else self.state.shifts(batch),
                    self.valid & ~self.alive if self.prunes and self.alive is not None else None,
                )
            embeddings = brought(self.plan.family.rotary(index, hidden, self.packed), self.home)
        return rows_of(embeddings, self.segment.index)

    # -- what scorers are given ------------------------------------------------------------

    def note_target(self, index: int, output: Tensor) -> None:
        """Remember the output of layer ``index``'s second norm, where a scorer asks for it."""
        if index in self.taps:
            self.taps[index].target = output

    # -- leaving ---------------------------------------------------------------------------

    def finish(self) -> None:
        """Leave on the cache what later forwards over it need."""
        if self.cache is None or self.segment is None:
            return
        if self.state is None:
            self.state = CacheState(self.plan.digest, [None] * len(self.plan.stages))
            setattr(self.cache, STATE, self.state)
        if not self.prunes and self.length == 1:
            return
        for s, segment in enumerate(self.segments):
            self.state.prefix[s] = extend_prefix(segment.prefix, segment.past, segment.valid)
        if self.prunes and self.alive is not None:
            gone = (self.valid & ~self.alive).any(0).nonzero()
            if len(gone):
                self.state.floor = self.past + int(gone[-1]) + 1
        if self.prunes and self.plan.stages[0].layer == 0:
            first = self.segments[0].valid
            count_dropped(self.cache, self.length - first.shape[1], anew=not self.past)
            if self.plan.packed:
                gone = self.valid.sum(1) - first.sum(1)
                old = self.state.shifts(first.shape[0])
                self.state.shift = gone if old is None else old.to(gone.device) + gone
        follow_rows(self.cache, self.state)

    def restore_length(self, hidden: Tensor) -> Tensor:
        """Scatter final states back to this forward's slots, ``[B, S, d]``; 0 where dropped."""
        return hidden if self.segment is None else self.segment.scatter(hidden, self.length)
