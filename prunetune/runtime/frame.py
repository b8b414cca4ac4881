"""One forward's bookkeeping: which slots are alive, and what later layers must be told."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunetune.devices import brought
from prunetune.release import LayerCall, Told
from prunetune.runtime.asked import asked_row
from prunetune.runtime.cache import (
    STATE,
    CacheState,
    count_dropped,
    follow_rows,
    physical_length,
    state_of,
)
from prunetune.runtime.choose import Decisions, choose
from prunetune.runtime.compiled import never_compiled
from prunetune.runtime.images import ImageTokens, assign_images, stage_trace
from prunetune.runtime.masks import check_window, segment_mask
from prunetune.runtime.plan import Plan
from prunetune.runtime.positions import packed_ids, prompt_end, rows_of
from prunetune.runtime.promises import check_lengths, check_position, last_position
from prunetune.runtime.segment import (
    NOWHERE,
    Held,
    Move,
    Segment,
    of_last_survivors,
    places,
)
from prunetune.runtime.sight import Sight, new_slots, packed_samples, renumbered, visible
from prunetune.runtime.taps import LayerTap
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
        given: The cache that the base model was given, or None.
        cache: The cache that its layers get, or None.
        labels: ``[B, S]`` int64, equal where tokens are equal; None where nobody asks.
        captures: Of the encoder calls that belong to this forward, by modality.
        query: ``[B]`` int64, the slot whose attention row scorers get; None: the last real one.
        past: Tokens seen over the cache before this forward, dropped ones included. Read before any
            layer runs: by the first stage's layer, the layers below have grown already.
        tail: Tokens after the prompt's last one, that a caller wants checked (assisted decoding).
        home: The device of the states that entered the first layer seen: of all bookkeeping.
        memoise: Whether captures live on and may keep scores (a search's trials).
        positions: What the text model was given as positions, where its layers are given none.
        chosen_positions: Whether the model's caller chose the positions.
        packed: ``[B, S]`` int64, positions without gaps, of a config that asks for them.
        shift: ``[B, S]`` int64, how many tokens before each one this forward dropped at layer 0.
        sight: Which tokens see which, where that is more than "all real ones before".
        samples: ``[B, S]`` int64, the sample of each token, where FlashAttention tells samples of a
            row apart by their positions.
        decisions: Of an earlier forward over the same prompt.
        wrong: 0-dim bool: the position of this decoding step is wrong; None: it is not known to be.
    """

    plan: Plan
    image_mask: Tensor | None
    attention_mask: Any = None
    input_ids: Tensor | None = None
    labels: Tensor | None = None
    captures: dict[str, VisionCapture] = field(default_factory=dict)
    video_mask: Tensor | None = None
    given: Any = None
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
    shift: Tensor | None = None
    past: int = 0
    length: int = 0
    started: bool = False
    query: Tensor | None = None
    tail: int = 0
    memoise: bool = False
    valid: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool, device="cpu"))
    padded: bool = False
    home: Any = None
    positions: Tensor | None = None
    chosen_positions: bool = False
    sight: Sight | None = None
    samples: Tensor | None = None
    decisions: Decisions = field(default_factory=Decisions)
    wrong: Tensor | None = None

    @property
    def prunes(self) -> bool:
        """Whether this forward carries images."""
        return self.image_mask is not None

    # -- entering layers -----------------------------------------------------------------

    def enter(self, index: int, call: LayerCall) -> tuple[Tensor, Told]:
        """Do what is due before decoder layer ``index``; return its states and what it is told."""
        if not self.started:
            self._start(call)
        hidden, told = call.hidden, call.told
        if (
            self.stage + 1 < len(self.plan.stages)
            and self.plan.stages[self.stage + 1].layer == index
        ):
            hidden = self._begin_stage(index, hidden)
        if self.segment is not None:
            told = self._told(index, hidden, call.told)
        if self.prunes and index in self.plan.tapped:
            self.taps[index] = LayerTap(hidden, row=self._asked(index, hidden, call, told))
        return hidden, told

    def enter_again(self, index: int, call: LayerCall) -> tuple[Tensor, Told]:
        """Do the same for a checkpointed layer that the backward pass recomputes."""
        layers = [stage.layer for stage in self.plan.stages if stage.layer <= index]
        if not layers or len(self.segments) < len(layers):
            return call.hidden, call.told
        segment = self.segments[len(layers) - 1]
        hidden = segment.move(call.hidden) if layers[-1] == index else call.hidden
        return hidden, segment.inputs[self.plan.family.layer_kind(index)]

    def _start(self, call: LayerCall) -> None:
        hidden = call.hidden
        self.started = True
        self.cache = call.cache
        self.length = hidden.shape[1]
        # Layers may be on several devices: everything is decided where the first states are.
        self.home = hidden.device
        for name in ("image_mask", "video_mask", "labels", "attention_mask"):
            setattr(self, name, brought(getattr(self, name), self.home))
        if call.told.positions is not None:
            self.positions = call.told.positions
        if self.cache is not None:
            self.state = state_of(self.cache, self.plan.digest, self.past)
        if self.prunes or self.state:
            check_window(self.plan.family.text_model.config, self.past + self.length)
        self.valid = new_slots(self.attention_mask, hidden, self.past)
        # One-token steps are never padding: no device sync while decoding.
        self.padded = self.length > 1 and not bool(self.valid.all())
        self.alive = self.valid.clone()
        if self.length > 1:
            self._look(call)
        elif self.state is not None:
            self.wrong = check_position(
                self.state, self.past, self.positions, hidden.shape[0],
                chosen=self.chosen_positions,
                dropped=self.past - physical_length(self.cache, 0),
            )  # fmt: skip
        capture = next(iter(self.captures.values()), None)
        if self.image_mask is not None and capture is not None:
            if self.input_ids is not None and self.cache is None:
                self.decisions = Decisions(capture.decisions, capture.repeats(self.input_ids))
            if self.query is None:
                tail = self.tail
                if self.decisions.replay and capture.prompt is not None:
                    tail = self.length - capture.prompt.shape[1]
                self.query = prompt_end(self.valid, self.image_mask, tail)

    def _look(self, call: LayerCall) -> None:
        """Find out whether more than padding decides which tokens see which."""
        if not self.prunes:
            return
        mask = brought(call.told.mask, self.home)
        batch = call.hidden.shape[0]
        samples = None
        if self.attention_mask is None and self.cache is None:
            samples = packed_samples(brought(self.positions, self.home), batch)
        if isinstance(mask, Tensor) and mask.dim() == 4:
            given = isinstance(self.attention_mask, Tensor) and self.attention_mask.dim() == 4
            if samples is not None or given:
                seen = visible(mask)[:, :, self.past : self.past + self.length]
                self.sight = Sight(seen.expand(batch, -1, -1))
        elif samples is not None and batch == 1:
            before = torch.arange(self.length, device=self.home)
            same = samples[:, :, None] == samples[:, None]
            self.sight = Sight(same & (before <= before[:, None]))
            self.samples = samples

    # -- stages --------------------------------------------------------------------------

    def _begin_stage(self, index: int, hidden: Tensor) -> Tensor:
        self.stage += 1
        hidden = brought(hidden, self.home)
        if self.prunes:
            hidden = self._prune(index, hidden)
        elif self.state is not None:
            self.segment = Segment(index=None, valid=self.valid, padded=self.padded)
        if self.segment is not None:
            self.segment.past = physical_length(self.cache, index)
            if self.state is not None:
                held = self.state.rows(self.stage, hidden.shape[0])
                self.segment.held = held.cropped(self.segment.past)
            self.segments.append(self.segment)
        return hidden

    @never_compiled
    def _prune(self, index: int, hidden: Tensor) -> Tensor:
        assert self.alive is not None
        if not self.rows:
            self._assign_images()
        stage = self.plan.stages[self.stage]
        place = places(self.segment, self.alive, self.sight)
        before = [sum(len(image.alive) for image in row) for row in self.rows]
        tap = self.taps.pop(index - 1, None)
        if tap is not None:
            tap = LayerTap(*brought((tap.source, tap.target, tap.row), self.home))
        move = Move(
            choose(
                self.plan, self.stage, self.rows, hidden, place, tap, self.decisions,
                memoise=self.memoise,
            )
        )  # fmt: skip
        for b, row in enumerate(self.rows):
            for image in row:
                self.alive[b, image.slots] = False
                self.alive[b, image.slots[image.alive]] = True
        after = [sum(len(image.alive) for image in row) for row in self.rows]
        now = self.segment
        if before == after:
            # Nothing to move: the states stay where they are, at no cost.
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
        mask = self.image_mask
        assert mask is not None
        slots = [row.nonzero().flatten() for row in mask]
        if self.plan.family.joins_views and "image" in self.captures:
            join_views(self.plan.family, self.captures["image"], slots, self.labels)
        self.rows = assign_images(mask, self.video_mask, self.captures)
        if self.padded:
            for valid, row in zip(self.valid, self.rows):
                for image in row:
                    image.hide(valid)
        self.trace = ForwardTrace(
            slots,
            [[len(i.slots) for i in row] for row in self.rows],
            [[i.capture.geometry for i in row] for row in self.rows],
        )

    # -- what later layers are told --------------------------------------------------------

    def _told(self, index: int, hidden: Tensor, own: Told) -> Told:
        segment = self.segment
        assert segment is not None
        kind = self.plan.family.layer_kind(index)
        if kind not in segment.inputs:
            hidden = brought(hidden, self.home)
            mask = segment_mask(
                self.plan.family.text_model.config, hidden, segment, brought(own.mask, self.home),
                self.cache, index, self.past, self.length,
            )  # fmt: skip
            # Gapped position ids would be read as packed sequences (runtime-notes 4.5).
            numbers = None if self.samples is None else renumbered(self.samples, segment.index)
            segment.inputs[kind] = Told(mask, self._rotary(index, hidden, own), numbers)
        return segment.inputs[kind]

    def _rotary(self, index: int, hidden: Tensor, own: Told) -> tuple[Tensor, ...]:
        assert self.segment is not None
        rotary: tuple[Tensor, ...] = brought(own.rotary, self.home)
        if self.plan.packed:
            if self.packed is None:
                batch = hidden.shape[0]
                if self.prunes and self.alive is not None:
                    gone = self.valid & ~self.alive
                    before = gone.long().cumsum(1)
                    self.shift = self.sight.gone_before(gone) if self.sight else before
                self.packed = packed_ids(
                    brought(self.positions, self.home).expand(batch, -1),
                    None if self.state is None else self.state.shifts(batch),
                    self.shift,
                )
            rotary = brought(self.plan.family.rotary(index, hidden, self.packed), self.home)
        return rows_of(rotary, self.segment.index)

    # -- what scorers are given ------------------------------------------------------------

    def _asked(self, index: int, hidden: Tensor, call: LayerCall, told: Told) -> Tensor | None:
        if index not in self.plan.row_layers:
            return None
        assert self.image_mask is not None
        assert self.alive is not None
        segment = self.segment
        if segment is None:
            segment = Segment(None, self.valid, self.padded, past=self.past)
        return asked_row(
            self.plan.family.layers[index], index, hidden, call.told.mask, told.rotary, self.cache,
            segment, self.alive, self.image_mask, self.query, self.sight, self.past,
        )  # fmt: skip

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
            self.state = CacheState(self.plan.digest, [Held() for _ in self.plan.stages])
            setattr(self.cache, STATE, self.state)
        if not self.prunes and self.length == 1:
            return
        self.state.held = [part.after(self.past, self.length) for part in self.segments]
        self.state.position = last_position(self.positions, self.valid)
        self.state.reached = self.past + self.length
        if self.prunes:
            check_lengths(self.cache, self._promised())
            self._note_dropped(self.state)
        follow_rows(self.cache, self.state)

    def _promised(self) -> list[int]:
        """Return how many tokens each layer of the cache holds now, as the stages promise."""
        bounds = [stage.layer for stage in self.plan.stages]
        ends = [*bounds[1:], len(self.plan.family.layers)]
        # Layers before the first stage hold all: of theirs, nothing is replaced.
        promised = [self.past + self.length] * bounds[0]
        for part, first, end in zip(self.segments, bounds, ends, strict=True):
            promised += [part.past + part.valid.shape[1]] * (end - first)
        return promised

    def _note_dropped(self, state: CacheState) -> None:
        assert self.alive is not None
        gone = (self.valid & ~self.alive).any(0).nonzero()
        if len(gone):
            state.floor = self.past + int(gone[-1]) + 1
        if self.plan.packed:
            assert self.shift is not None
            own = self.shift[:, -1]
            old = state.shifts(len(own))
            state.shift = own if old is None else old.to(own.device) + own
        count_dropped(self.cache, self.plan.first_of_kinds, self.past + self.length)

    def restore_length(self, hidden: Tensor) -> Tensor:
        """Return final states of this forward's slots, ``[B, S, d]``.

        Where a token was dropped, the state of the last survivor before it that it saw, which is
        what the compacted sequence has there; 0 where there is none.
        """
        if self.segment is None or self.segment.index is None:
            return hidden
        assert self.alive is not None
        return of_last_survivors(hidden, places(self.segment, self.alive, self.sight, none=NOWHERE))
