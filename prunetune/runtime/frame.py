"""One forward's bookkeeping: which slots are alive, and what later layers must be told."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunetune.models.devices import brought
from prunetune.release import LayerCall, Told, takes_bounds
from prunetune.runtime.choice.asked import asked_row
from prunetune.runtime.choice.choose import Decisions, choose
from prunetune.runtime.choice.plan import Plan
from prunetune.runtime.choice.question import note_questions, question_end
from prunetune.runtime.choice.taps import LayerTap
from prunetune.runtime.compiled import never_compiled
from prunetune.runtime.layers.cache import (
    CacheState,
    physical_length,
    state_of,
    uncounted,
)
from prunetune.runtime.layers.masks import check_window, segment_mask, state_mask
from prunetune.runtime.layers.mass import bias_of
from prunetune.runtime.layers.positions import packed_ids, prompt_end, rows_of
from prunetune.runtime.layers.segment import (
    NOWHERE,
    Move,
    Segment,
    of_last_survivors,
    places,
)
from prunetune.runtime.layers.sight import Sight, look, new_slots, renumbered
from prunetune.runtime.leave import leave
from prunetune.runtime.promises import check_left, check_position
from prunetune.runtime.trace import ForwardTrace
from prunetune.runtime.vision.forward import Forward
from prunetune.runtime.vision.images import ImageTokens, stage_trace
from prunetune.runtime.vision.views import find_images
from prunetune.tokens import left_pad


@dataclass
class Frame:
    """State of one forward under a pruning config; never shared between forwards or threads.

    Attributes:
        plan: The config, resolved for the model.
        call: What the forward was given.
        cache: The cache that its layers get, or None.
        state: What earlier forwards have left on it.
        stage: Number of the last stage begun; -1: none.
        segment: The layers from that stage to the next; None: nothing is replaced.
        segments: All of them so far.
        taps: What scorers need of decoder layers, by layer.
        rows: The images of each batch row.
        alive: ``[B, S]`` bool, slots that are left: real tokens that no stage has dropped.
        valid: ``[B, S]`` bool, slots of real tokens.
        padded: Whether some are not.
        home: The device of the states that entered the first layer seen: of all bookkeeping.
        packed: ``[B, S]`` int64, positions without gaps, of a config that asks for them.
        shift: ``[B, S]`` int64, how many tokens before each one this forward dropped at layer 0.
        sight: Which tokens see which, where that is more than "all real ones before".
        samples: ``[B, S]`` int64, the sample of each token, where FlashAttention tells samples of a
            row apart by their positions.
        decisions: Of an earlier forward over the same prompt.
        wrong: 0-dim bool: the position of this decoding step is wrong; None: it is not known to be.
    """

    plan: Plan
    call: Forward
    cache: Any = None
    state: CacheState | None = None
    stage: int = -1
    segment: Segment | None = None
    segments: list[Segment] = field(default_factory=list)
    taps: dict[int, LayerTap] = field(default_factory=dict)
    rows: list[list[ImageTokens]] = field(default_factory=list)
    trace: ForwardTrace | None = None
    alive: Tensor | None = None
    valid: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool, device="cpu"))
    padded: bool = False
    length: int = 0
    started: bool = False
    home: Any = None
    packed: Tensor | None = None
    shift: Tensor | None = None
    sight: Sight | None = None
    samples: Tensor | None = None
    decisions: Decisions = field(default_factory=Decisions)
    wrong: Tensor | None = None

    @property
    def prunes(self) -> bool:
        """Whether this forward carries images."""
        return self.call.image_mask is not None

    # -- entering layers -----------------------------------------------------------------

    def enter(self, index: int, call: LayerCall) -> tuple[Tensor, Told]:
        """Do what is due before decoder layer ``index``; return its states and what it is told."""
        if not self.started:
            self._start(call)
        hidden, told = call.hidden, call.told
        if self.plan.due(self.stage + 1, index):
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

    def _start(self, layer: LayerCall) -> None:
        hidden, call = layer.hidden, self.call
        self.started = True
        self.cache = layer.cache
        self.length = hidden.shape[1]
        self.home = hidden.device  # Layers may be on several: all is decided where the first is.
        call.bring(self.home)
        if layer.told.positions is not None:
            call.positions = layer.told.positions
        if self.cache is not None:
            self.state = state_of(self.cache, self.plan.digest, call.past)
        if self.prunes or self.state:
            check_window(self.plan.family.text_model.config, call.past + self.length)
        self.valid = new_slots(call.mask, hidden, call.past)
        # One-token steps are never padding: no device sync while decoding.
        self.padded = self.length > 1 and not bool(self.valid.all())
        self.alive = self.valid.clone()
        if self.prunes:
            positions = call.positions if call.mask is None and self.cache is None else None
            flash = takes_bounds(self.plan.family.text_model.config)
            self.sight, self.samples = look(
                brought(layer.told.mask, self.home), call.mask, brought(positions, self.home),
                call.past, hidden.shape[:2], brought(layer.bounds, self.home) if flash else None,
            )  # fmt: skip
            self._find_query()
        elif self.state is not None and self.length == 1:
            self.wrong = check_position(
                self.state, call.past, call.positions, hidden.shape[0],
                chosen=call.chosen_positions, dropped=uncounted(self.cache),
            )  # fmt: skip

    def _find_query(self) -> None:
        call = self.call
        capture = next(iter(call.captures.values()), None)
        if capture is None or call.image_mask is None:
            return
        if call.ids is not None and self.cache is None:
            self.decisions = Decisions(capture.decisions, capture.repeats(call.ids))
        if call.query is None:
            tail = call.tail
            if self.decisions.replay and capture.prompt is not None:
                tail = self.length - capture.prompt.shape[1]
            call.query = prompt_end(self.valid, call.image_mask, tail)

    def _begin_stage(self, index: int, hidden: Tensor) -> Tensor:
        self.stage += 1
        hidden = brought(hidden, self.home)
        if self.prunes:
            hidden = self._prune(index, hidden)
        elif self.state is not None:
            self.segment = Segment(index=None, valid=self.valid, padded=self.padded)
        if self.segment is not None:
            past = self.segment.past = physical_length(self.cache, self.plan.keyed_from(index))
            if self.state is not None:
                self.segment.held = self.state.rows(self.stage, len(hidden)).cropped(past)
            self.segments.append(self.segment)
        return hidden

    @never_compiled
    def _prune(self, index: int, hidden: Tensor) -> Tensor:
        assert self.alive is not None
        if not self.rows:
            gone = ~self.valid if self.padded else None
            self.rows, self.trace = find_images(self.plan.family, self.call, gone)
            note_questions(self.plan, self.call, self.rows, self.valid, self.sight)
        stage = self.plan.stages[self.stage]
        place = places(self.segment, self.alive, self.sight)
        before = [sum(len(image.alive) for image in row) for row in self.rows]
        move = Move(
            choose(
                self.plan, self.stage, self.rows, hidden, place, self.taps.pop(index - 1, None),
                self.decisions, memoise=self.call.memoise,
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
            check_left(self.alive, stage.layer)
            slots, valid = left_pad([row.nonzero().flatten() for row in self.alive])
            move.index = place.gather(1, slots)
            self.segment = Segment(slots, valid, padded=not bool(valid.all()), move=move)
        if self.plan.uses_mass:
            self.segment.bias = bias_of(self.rows, self.segment, self.valid, stage.mass)
        assert self.trace is not None
        self.trace.stages.append(stage_trace(stage.layer, before, after, self.rows))
        return move(hidden)

    # -- what later layers are told --------------------------------------------------------

    def _told(self, index: int, hidden: Tensor, own: Told) -> Told:
        segment = self.segment
        assert segment is not None
        kind = self.plan.family.layer_kind(index)
        if kind not in segment.inputs and self.plan.family.carries(index):
            mask = state_mask(segment, own.mask, self.sight, self.call.past)
            segment.inputs[kind] = Told(mask, own.rotary, None, index=segment.index)
        if kind not in segment.inputs:
            hidden = brought(hidden, self.home)
            mask, bias = segment_mask(
                self.plan.family.text_model.config, hidden, segment, brought(own.mask, self.home),
                self.cache, index, self.call.past, self.length, kind,
            )  # fmt: skip
            # Gapped position ids would be read as packed sequences (runtime-notes 4.5).
            numbers = None if self.samples is None else renumbered(self.samples, segment.index)
            turned = self._rotary(index, hidden, own)
            segment.inputs[kind] = Told(mask, turned, numbers, bias, segment.index)
        return segment.inputs[kind].last(hidden.shape[1], segment.valid.shape[1])

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
                    brought(self.call.positions, self.home).expand(batch, -1),
                    None if self.state is None else self.state.shifts(batch),
                    self.shift,
                )
            rotary = brought(self.plan.family.rotary(index, hidden, self.packed), self.home)
        return rows_of(rotary, self.segment.index)

    # -- what scorers are given ------------------------------------------------------------

    def _asked(self, index: int, hidden: Tensor, call: LayerCall, told: Told) -> Tensor | None:
        if index not in self.plan.row_layers:
            return None
        assert self.call.image_mask is not None
        assert self.alive is not None
        segment = self.segment or Segment(None, self.valid, self.padded, past=self.call.past)
        return asked_row(
            self.plan.family.layers[index], index, hidden, call.told.mask, told.rotary, self.cache,
            segment, self.alive, self.call.image_mask, self.call.query, self.sight, self.call.past,
        )  # fmt: skip

    def note_target(self, index: int, output: Tensor) -> None:
        """Remember the output of layer ``index``'s second norm, where a scorer asks for it."""
        if index in self.taps:
            self.taps[index].target = output

    def finish(self) -> None:
        """Leave on the cache what later forwards over it need."""
        if self.cache is None or self.segment is None:
            return
        if self.prunes or self.state is None or self.length > 1:
            assert self.alive is not None
            leave(
                self.plan, self.cache, self.state, self.segments, self.valid,
                self.alive if self.prunes else None, self.call.positions, self.shift,
                self.call.past, question_end(self.plan.marks, self.rows),
            )  # fmt: skip

    def restore_length(self, hidden: Tensor) -> Tensor:
        """Return final states of this forward's slots, ``[B, S, d]``.

        Where one was dropped, the state of the last survivor before it that it saw; 0: none.
        """
        if self.segment is None or self.segment.index is None:
            return hidden
        assert self.alive is not None
        place = places(self.segment, self.alive, self.sight, none=NOWHERE)
        return of_last_survivors(hidden, place, self.segment.valid.shape[1])
