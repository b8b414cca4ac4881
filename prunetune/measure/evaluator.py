"""The objective: how far a config moves each sample's answer from the unpruned model's.

VFlowOpt's gap (arXiv 2508.05211, Eq. 8): 1 - cosine of the last prompt token's state after the
final norm, pruned against unpruned; beside it the KL divergence of the next-token distribution.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from prunetune.budget import Level, ModelFacts, candidates
from prunetune.calibration import CalibrationSet, Sample, end_ids
from prunetune.config import PruningConfig
from prunetune.errors import DataError
from prunetune.families.base_towers import Seen
from prunetune.measure.batching import (
    can_share,
    fitting_budget,
    in_batches,
    in_rows,
    windows,
    with_mates,
)
from prunetune.measure.continued import ContinuingRecorder
from prunetune.measure.counting import TokenCounter
from prunetune.measure.facts import model_facts
from prunetune.measure.levels import References, Room, Split
from prunetune.measure.own import answer_kl
from prunetune.measure.packing import collate
from prunetune.measure.prompts import Prompts, given_positions
from prunetune.measure.results import SampleResult, compare
from prunetune.measure.sharing import collate_rows
from prunetune.measure.starts import Drawn, Starts
from prunetune.models.devices import device_of
from prunetune.numerics import exactly
from prunetune.pixels import Pixels, shrinks
from prunetune.runtime.apply import Handle, check_fits, family_of
from prunetune.runtime.suffix import run_suffix, run_whole

__all__ = ["Evaluator", "SampleResult"]

logger = logging.getLogger(__name__)


class Evaluator:
    """Measures configs on one split; everything unpruned is computed once, here.

    A trial then runs only from its first stage's layer on, on surviving tokens, under the hooks
    that a deployment uses.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        samples: The split, in the order that trials use.
        deepest: Last layer that a first stage can be at; the states entering layers up to there
            are kept, a first stage behind it costs the layers between.
        batch_size: Samples that are measured before results are handed out.
        token_budget: Surviving tokens that run together; None for what suits the device.
        cache: Folder of references shared by searches; None keeps them in memory.
        cache_limit: Bytes that all references in ``cache`` may take.
        in_memory: Bytes up to which references stay in memory although there is a ``cache``.
        own: Most tokens of the model's own answers, for ``kl-answer``; 0: that is not measured.
        match: How answers are compared, see ``calibration.matching``.
        levels: Of pixels, that a search may choose, with the tokens that they leave.
        progress: Called with the number of samples done so far.

    Attributes:
        shares: Whether questions about the same pictures share a trial's pruned pictures.
        full: The unpruned references, of the full pictures at every level.

    Raises:
        DataError: The split is empty or a prompt has no image.
        UnsupportedModelError: No family supports the model.
    """

    def __init__(
        self,
        loaded: Any,
        samples: CalibrationSet,
        *,
        deepest: int,
        batch_size: int = 8,
        token_budget: int | None = None,
        cache: Path | None = None,
        cache_limit: int = 20 << 30,
        in_memory: int = 0,
        own: int = 0,
        match: str = "vqa",
        levels: Sequence[Level] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if not len(samples):
            raise DataError("the split has 0 samples; allowed: 1 or more; add images")
        self.loaded = loaded
        self.data = samples
        self.samples: Sequence[Sample] = samples.samples
        self.family = family_of(loaded.model)
        self.eos = end_ids(loaded.model)
        self.device = device_of(loaded.model)
        self.batch_size, self.shares, self.own = batch_size, True, own
        self.levels = tuple(levels)
        self.token_budget = token_budget or fitting_budget(self.family, self.device)
        # Measured on a CPU (benchmarks/search_cost.py); elsewhere small batches leave cores idle.
        self._batch_cost = 24 if self.device.type == "cpu" else None
        self.whole = self.family.prefix_problem()
        if self.whole is not None:
            logger.info("every trial runs the whole model: %s", self.whole)
        self._recorder = ContinuingRecorder(self.family, -1 if self.whole else deepest)
        runs = self.family, self.samples, self.device, self.eos, self._recorder
        split = Split(loaded, *runs, own=own, match=match)
        room = Room(cache, cache_limit, in_memory)
        self.starts = Starts(split, room, progress or (lambda done: None))
        self.full = self.starts.full
        self.unpruned_correct = self.full.correct

    # -- what every trial does -------------------------------------------------------------

    def evaluate(
        self, config: PruningConfig, *, answers: bool = True
    ) -> Iterator[list[tuple[int, SampleResult]]]:
        """Yield batches of (sample index, result) in the split's order; stop whenever you like.

        Args:
            config: What is measured.
            answers: Whether expected answers are checked; without, their tokens are not run and
                the vocabulary's head sees the prompts' last tokens only.

        Raises:
            ConfigError: The config does not fit the model.
        """
        check_fits(self.family, config, strict=False)
        starts, first = self.starts.at(config.pixels), 0
        if config.stages:
            first = config.stages[0].layer
        shares = self.shares and self.whole is None and can_share(self.family, config)
        found: dict[int, SampleResult] = {}
        for number, window in enumerate(windows(len(self.samples), self.batch_size)):
            due = [index for index in window if index not in found]
            if shares and (number or answers):
                # The longer a trial runs, the likelier it is to get to what comes next.
                ahead = self.batch_size * (4 if answers else number - 1)
                more = range(window.stop, min(window.stop + ahead, len(self.samples)))
                due = with_mates([*due, *more], found, starts.lengths, starts.mates)
            # Before the config is applied: what is no longer kept is computed on the bare model.
            drawn = {index: self.starts.draw(config.pixels, first, index) for index in due}
            with exactly():
                if config.stages:
                    found |= self._pruned(config, starts, drawn, shares, answers)
                else:
                    for index, one in drawn.items():
                        found[index] = self.starts.unstaged(one, answers=answers)
            # Let go of the files before the next ones are mapped.
            drawn.clear()
            if answers:
                new = {index: found[index] for index in due}
                found.update(self.starts.judge(config.pixels).judged(self._applied(config), new))
            yield [(index, found.pop(index)) for index in window]

    def _pruned(
        self,
        config: PruningConfig,
        starts: References,
        drawn: Mapping[int, Drawn],
        shares: bool,
        answers: bool,
    ) -> dict[int, SampleResult]:
        found: dict[int, SampleResult] = {}
        with Handle(self.family, config) as handle:
            for rows in self._parts(config, starts, list(drawn), shares):
                part = [index for row in rows for index in row]
                some = [[drawn[index] for index in row] for row in rows]
                found.update(zip(part, self._measure(handle, part, some, answers)))
        return found

    def _applied(self, config: PruningConfig) -> Callable[[], AbstractContextManager[Any]]:
        return partial(Handle, self.family, config) if config.stages else nullcontext

    def _parts(
        self, config: PruningConfig, starts: References, due: Sequence[int], shares: bool
    ) -> list[list[list[int]]]:
        """Fill batches with rows of samples, by the tokens that survive."""
        first, kept = config.stages[0], 1.0
        if self.whole is None and first.layer <= self._recorder.deepest:
            kept = first.retention
        rows = in_rows(due, starts.lengths) if shares else [[index] for index in due]
        return in_batches(rows, starts.lengths, kept, self.token_budget, self._batch_cost)

    def _measure(
        self, handle: Handle, part: list[int], rows: list[list[Drawn]], answers: bool
    ) -> list[SampleResult]:
        if not self.own:
            return self._compared(handle, part, rows, answers=answers)
        found = self._compared(handle, part, rows, answers=True, own=True)
        if not answers:
            return found
        expected = self._compared(handle, part, rows, answers=True)
        return [
            replace(one, correct=other.correct, begun=other.begun)
            for one, other in zip(found, expected)
        ]

    def _compared(
        self,
        handle: Handle,
        part: list[int],
        rows: list[list[Drawn]],
        *,
        answers: bool,
        own: bool = False,
    ) -> list[SampleResult]:
        begun = [[drawn.begun(own) for drawn in row] for row in rows]
        starts = [start for row in begun for start in row]
        fulls = [drawn.full for row in rows for drawn in row]
        if self.whole is not None:
            samples = [self.samples[index] for index in part]
            given = [start.answer for start in starts] if own else None
            prompts = self.starts.at(handle.config.pixels).prompts(
                samples, answers=answers, given=given
            )
            tail = run_whole(handle, self._inputs(prompts), prompts.query, prompts.tail)
            expected = prompts.answers
        else:
            first = handle.plan.stages[0].layer
            tapped = first - 1 in handle.plan.tapped
            if len(rows) == len(starts):
                batch = collate(starts, first, self.device, answers=answers, tapped=tapped)
            else:
                batch = collate_rows(begun, first, self.device, answers=answers, tapped=tapped)
            expected = batch.answers
            longest = max(len(answer or []) for answer in expected)
            tail = run_suffix(handle, batch.prefix, 1 + longest)
        logits = self.family.logits(tail).float()
        results = compare(tail, logits, fulls, expected, self.eos)
        if not own:
            return results
        moved = zip(results, answer_kl(self.family, logits, fulls))
        return [replace(one, kl_answer=kl, correct=None, begun=()) for one, kl in moved]

    def _inputs(self, prompts: Prompts) -> dict[str, Any]:
        return {
            "input_ids": prompts.input_ids,
            "attention_mask": prompts.valid.long(),
            "position_ids": given_positions(self.family, prompts),
            **prompts.pixels,
        }

    def facts(self) -> ModelFacts:
        """Return what space and budgets need to know about the model and the data."""
        lengths = self.full.lengths
        count, image = len(self.samples), sum(size.image for size in lengths)
        text = sum(size.prompt - size.image for size in lengths)
        return model_facts(
            self.loaded,
            self.family,
            self.data,
            image_tokens=image / count,
            text_tokens=text / count,
            separator_share=sum(size.separators for size in lengths) / image,
            seen=[size.seen for size in lengths],
            levels=self.levels,
        )

    @cached_property
    def counter(self) -> TokenCounter:
        """What tells how many tokens smaller pictures have."""
        return TokenCounter(self.loaded, self.family, self.data)

    def levels_near(self, budgets: Sequence[float]) -> list[Level]:
        """Return levels of pixels, finer near budgets; none where no level leaves fewer tokens."""
        return self.counter.levels(candidates([share for share in budgets if share < 1.0]))

    def seen_at(self, pixels: Pixels | None) -> Seen:
        """Return what the vision tower is given of a mean prompt at a level of pixels."""
        return self.counter.seen(pixels)

    def token_share(self, pixels: Pixels | None) -> float:
        """Return the share of the full pictures' tokens that a level of pixels leaves."""
        return self.counter.share(pixels) if shrinks(pixels) else 1.0
