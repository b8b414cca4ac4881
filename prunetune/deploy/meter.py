"""Runs samples through ``generate``, unpruned and pruned, and adds up what that changed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunetune.calibration import (
    CalibrationSet,
    Sample,
    answer_ids,
    encode,
    end_ids,
    gives_answer,
)
from prunetune.calibration.answers import Expected
from prunetune.config import PruningConfig
from prunetune.errors import DataError
from prunetune.models.devices import device_of
from prunetune.numerics import exactly
from prunetune.pixels.processors import resized
from prunetune.release import cache_of, keyed_layers
from prunetune.runtime.apply import Handle, family_of
from prunetune.runtime.layers.cache import physical_length
from prunetune.runtime.trace import ForwardTrace


@dataclass(frozen=True)
class SplitScores:
    """What a config does to one split.

    Attributes:
        samples: Their number.
        gap: Mean of 1 - cosine of the last prompt token's final states.
        kl: Mean KL of the next-token distribution, in nats.
        top1_agreement: Share of samples whose most likely next token is the unpruned one.
        accuracy: Share of right greedy answers; None where no sample has an answer.
        unpruned_accuracy: The same without pruning.
        mean_retention: Mean over samples and decoder layers; where pictures are made smaller, of
            the full pictures' tokens, all samples together.
    """

    samples: int
    gap: float
    kl: float
    top1_agreement: float
    accuracy: float | None
    unpruned_accuracy: float | None
    mean_retention: float


@dataclass
class Tally:
    """What was measured of one split, sample by sample.

    Attributes:
        gap: Of each sample.
        kl: Of each sample.
        agrees: Of each sample.
        correct: Of each sample with an answer, pruned.
        unpruned: Of each sample with an answer, unpruned.
        counts: Image tokens of each sample at every decoder layer.
        totals: Image tokens of each sample, as pruning finds them.
        originals: Image tokens of each sample's full pictures.
        images: Images of each sample.
        cache_fits: Whether every layer's cache was as long as the counts say.
    """

    gap: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    unpruned: list[bool] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    originals: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    cache_fits: bool = True

    def scores(self) -> SplitScores:
        """Return the means."""
        pairs = list(zip(self.counts, self.totals, strict=True))
        shares = [sum(counts) / (len(counts) * total) for counts, total in pairs]
        retention = mean(shares)
        if self.originals != self.totals:
            # Of all samples together, as the budget counts what smaller pictures save.
            kept = sum(sum(counts) for counts in self.counts)
            retention = kept / (len(self.counts[0]) * sum(self.originals))
        answered = bool(self.correct)
        return SplitScores(
            samples=len(self.gap),
            gap=mean(self.gap),
            kl=mean(self.kl),
            top1_agreement=mean(self.agrees),
            accuracy=mean(self.correct) if answered else None,
            unpruned_accuracy=mean(self.unpruned) if answered else None,
            mean_retention=retention,
        )


class Meter:
    """Runs batches of a split through ``generate``, unpruned and pruned."""

    def __init__(
        self, config: PruningConfig, loaded: Any, batch_size: int, match: str = "vqa"
    ) -> None:
        self.config, self.loaded, self.batch_size = config, loaded, batch_size
        self.match = match
        self.family = family_of(loaded.model)
        self.device = device_of(loaded.model)
        self.eos = end_ids(loaded.model)
        self.processor = resized(loaded.processor, config)

    def run(self, split: CalibrationSet, advance: Callable[[int], None]) -> Tally:
        """Measure a split; ``advance`` is called with the size of each batch done.

        Raises:
            DataError: It is empty.
        """
        if not len(split):
            raise DataError("the split has 0 samples; allowed: 1 or more")
        tally = Tally()
        for first in range(0, len(split), self.batch_size):
            batch = split.samples[first : first + self.batch_size]
            with exactly():
                self._measure(batch, tally)
            advance(len(batch))
        return tally

    def _measure(self, batch: Sequence[Sample], tally: Tally) -> None:
        inputs = encode(self.loaded.processor, batch).to(self.device)
        answers = [answer_ids(self.loaded.processor, sample, self.match) for sample in batch]
        new = max((answer.new_tokens for answer in answers if answer is not None), default=1)
        full = _generate(self.loaded.model, inputs, new)
        ids = inputs["input_ids"]
        marks = ids.new_tensor(list(self.family.placeholders.values()))
        originals = torch.isin(ids, marks).sum(1).tolist()
        if self.processor is not self.loaded.processor:
            inputs = encode(self.processor, batch).to(self.device)
        with Handle(self.family, self.config) as handle:
            pruned = _generate(self.loaded.model, inputs, new)
            trace = next(t for t in handle.trace if len(t.lengths) == len(batch))
        _compare(pruned, full, tally)
        tally.correct += _right(pruned.new, answers, self.eos)
        tally.unpruned += _right(full.new, answers, self.eos)
        tally.originals += originals
        self._count(trace, inputs["attention_mask"].sum(1).tolist(), pruned, tally)

    def _count(self, trace: ForwardTrace, lengths: list[int], run: "_Run", tally: Tally) -> None:
        depth = len(self.family.layers)
        rows = []
        for b, images in enumerate(trace.lengths):
            counts = [sum(images)] * depth
            for stage in trace.stages:
                counts[stage.layer :] = [stage.after[b]] * (depth - stage.layer)
            rows.append(counts)
        tally.counts += rows
        tally.totals += [sum(images) for images in trace.lengths]
        tally.images += [len(images) for images in trace.lengths]
        text = [length - sum(images) for length, images in zip(lengths, trace.lengths)]
        keyed = [k for k in range(depth) if self.family.holds(k)]
        expected = [max(t + row[k] for t, row in zip(text, rows)) for k in keyed]
        steps = run.new.shape[1] - 1
        tally.cache_fits &= run.cached == [length + steps for length in expected]


@dataclass(frozen=True)
class _Run:
    """One ``generate``: last prompt token's final state and logits, new tokens, cache lengths."""

    state: Tensor
    logits: Tensor
    new: Tensor
    cached: list[int]


def _generate(model: Any, inputs: Any, new: int) -> _Run:
    states: list[Tensor] = []
    logits: list[Tensor] = []

    def note_state(head: Any, args: tuple[Any, ...]) -> None:
        if not states:
            states.append(args[0][:, -1].float())

    def note_logits(module: Any, args: tuple[Any, ...], output: Any) -> None:
        # Of the model, not of its head: some cap what the head returns.
        if not logits:
            logits.append(output.logits[:, -1].float())

    hooks = [
        model.get_output_embeddings().register_forward_pre_hook(note_state),
        model.register_forward_hook(note_logits),
    ]
    try:
        output = model.generate(
            **inputs,
            max_new_tokens=new,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
        )
    finally:
        for hook in hooks:
            hook.remove()
    cache = cache_of(output)
    # Of a sliding window's, which forgets, all that it was given.
    cached = [physical_length(cache, k) for k in keyed_layers(cache)]
    return _Run(states[0], logits[0], output.sequences[:, inputs["input_ids"].shape[1] :], cached)


@exactly()
def _compare(pruned: _Run, full: _Run, tally: Tally) -> None:
    cosine = torch.nn.functional.cosine_similarity(
        pruned.state.double(), full.state.double(), dim=-1
    )
    before, after = full.logits.log_softmax(-1), pruned.logits.log_softmax(-1)
    tally.gap += (1 - cosine).clamp_min(0).tolist()
    tally.kl += (before.exp() * (before - after)).sum(-1).clamp_min(0).tolist()
    tally.agrees += before.argmax(-1).eq(after.argmax(-1)).tolist()


def _right(new: Tensor, answers: Sequence[Expected | None], eos: frozenset[int]) -> list[bool]:
    """Tell for each sample with an answer whether it was generated, padding apart."""
    rows = zip(new.tolist(), answers, strict=True)
    told = (gives_answer(row[: a.new_tokens], a, eos) for row, a in rows if a is not None)
    return [right for right in told if right is not None]


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return math.fsum(values) / len(values)
