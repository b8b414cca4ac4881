"""The objective: how far a config moves each sample's answer from the unpruned model's.

VFlowOpt's gap (arXiv 2508.05211, Eq. 8): 1 - cosine of the last prompt token's state after the
final norm, pruned against unpruned; beside it the KL divergence of the next-token distribution.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunetune.budget import ModelFacts
from prunetune.calibration import CalibrationSet, Sample, end_ids, exact_answer
from prunetune.config import PruningConfig
from prunetune.errors import DataError
from prunetune.measure.batching import (
    Length,
    by_images,
    can_share,
    fitting_budget,
    in_batches,
    in_rows,
    mates_of,
    windows,
    with_mates,
)
from prunetune.measure.continued import ContinuingRecorder
from prunetune.measure.facts import model_facts
from prunetune.measure.own import answer_kl, followed_by_own
from prunetune.measure.packing import collate
from prunetune.measure.prompts import Prompts, given_positions, prepare
from prunetune.measure.reference import Reference
from prunetune.measure.results import SampleResult, compare
from prunetune.measure.sharing import collate_rows
from prunetune.measure.store import DiskStore, MemoryStore, Store, store_key
from prunetune.models.devices import device_of
from prunetune.numerics import exactly
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
        progress: Called with the number of samples done so far.

    Attributes:
        shares: Whether questions about the same pictures share a trial's pruned pictures.

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
        self.batch_size = batch_size
        self.shares = True
        self.own = own
        self.token_budget = token_budget or fitting_budget(self.family, self.device)
        # Measured on a CPU (benchmarks/search_cost.py); elsewhere small batches leave cores idle.
        self._batch_cost = 24 if self.device.type == "cpu" else None
        self.whole = self.family.prefix_problem()
        if self.whole is not None:
            logger.info("every trial runs the whole model: %s", self.whole)
        self._recorder = ContinuingRecorder(self.family, -1 if self.whole else deepest)
        self._store: Store
        self._lengths: list[Length] = []
        self.unpruned_correct: list[bool | None] = []
        self._compute(cache, cache_limit, in_memory, progress or (lambda done: None))

    # -- what is computed once -------------------------------------------------------------

    def _compute(
        self, cache: Path | None, limit: int, in_memory: int, progress: Callable[[int], None]
    ) -> None:
        lengths: dict[int, Length] = {}
        correct: dict[int, bool | None] = {}
        memory, taken = MemoryStore(), 0
        self._store = memory
        order = by_images(self.samples)
        first = self._record(0, order[0][1])
        foreseen = len(self.samples) * first.nbytes
        for index, more in order:
            reference = self._reference(index, first if index == 0 else None, more=more)
            taken += reference.nbytes
            # The first sample may be the smallest: what is there already counts, too.
            if self._store is memory and cache is not None and max(foreseen, taken) > in_memory:
                names = [sample.digest()[:32] for sample in self.samples]
                self._store = disk = DiskStore(cache, self._key(), names, limit)
                disk.foresee(max(foreseen, taken))
                memory.move_to(disk)
            lengths[index] = Length.of(reference)
            correct[index] = reference.correct
            progress(len(lengths))
        self._recorder.forget()
        self._lengths = [lengths[index] for index in range(len(self.samples))]
        self._mates = mates_of(self._lengths)
        self.unpruned_correct = [correct[index] for index in range(len(self.samples))]

    def _key(self) -> str:
        processor = self.loaded.processor
        return store_key(
            self.loaded.model,
            self.loaded.fingerprint,
            deepest=self._recorder.deepest,
            device=self.device.type,
            eos=sorted(self.eos),
            pictures=str(getattr(processor, "image_processor", "")),
            template=str(getattr(processor, "chat_template", "")),
            # Nobody else's key changes with it.
            **({"own": self.own} if self.own else {}),
        )

    def _reference(
        self, index: int, computed: Reference | None = None, *, more: bool = False
    ) -> Reference:
        """Return a sample's reference, computing it where it is not (or no longer) kept."""
        kept = self._store.get(index)
        if kept is None:
            kept = computed or self._record(index, more)
            self._store.put(index, kept)
        return kept

    def _record(self, index: int, more: bool) -> Reference:
        sample = self.samples[index]
        with exactly():
            prompts = self._prompts([sample], answers=True)
            if not bool((prompts.input_ids == self.family.image_token_id).any()):
                raise DataError(
                    f"sample {sample.id!r}: the prompt has no image; every sample needs one"
                )
            reference = self._recorder.record(prompts, more=more, own=self.own, ends=self.eos)
            logits = self.family.logits(reference.tail).float()
        reference.log_probs = logits[0].log_softmax(-1)
        reference.correct = exact_answer(logits.argmax(-1).tolist(), reference.answer, self.eos)
        return reference

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
        shares = self.shares and self.whole is None and can_share(self.family, config)
        found: dict[int, SampleResult] = {}
        for number, window in enumerate(windows(len(self.samples), self.batch_size)):
            due = [index for index in window if index not in found]
            if shares and (number or answers):
                # The longer a trial runs, the likelier it is to get to what comes next.
                ahead = self.batch_size * (4 if answers else number - 1)
                more = range(window.stop, min(window.stop + ahead, len(self.samples)))
                due = with_mates([*due, *more], found, self._lengths, self._mates)
            # Before the config is applied: what is no longer kept is computed on the bare model.
            references = {index: self._reference(index) for index in due}
            with exactly(), Handle(self.family, config) as handle:
                for rows in self._parts(config, due, shares):
                    part = [index for row in rows for index in row]
                    some = [[references[index] for index in row] for row in rows]
                    found.update(zip(part, self._measure(handle, part, some, answers)))
            # Let go of the files before the next ones are mapped.
            references.clear()
            yield [(index, found.pop(index)) for index in window]

    def _parts(
        self, config: PruningConfig, due: Sequence[int], shares: bool
    ) -> list[list[list[int]]]:
        """Fill batches with rows of samples, by the tokens that survive."""
        first, kept = config.stages[0], 1.0
        if self.whole is None and first.layer <= self._recorder.deepest:
            kept = first.retention
        rows = in_rows(due, self._lengths) if shares else [[index] for index in due]
        return in_batches(rows, self._lengths, kept, self.token_budget, self._batch_cost)

    def _measure(
        self, handle: Handle, part: list[int], rows: list[list[Reference]], answers: bool
    ) -> list[SampleResult]:
        if not self.own:
            return self._compared(handle, part, rows, answers=answers)
        first = handle.plan.stages[0].layer
        along = [[followed_by_own(reference, first) for reference in row] for row in rows]
        found = self._compared(handle, part, along, answers=True, own=True)
        if not answers:
            return found
        expected = self._compared(handle, part, rows, answers=True)
        return [replace(one, correct=other.correct) for one, other in zip(found, expected)]

    def _compared(
        self,
        handle: Handle,
        part: list[int],
        rows: list[list[Reference]],
        *,
        answers: bool,
        own: bool = False,
    ) -> list[SampleResult]:
        references = [reference for row in rows for reference in row]
        if self.whole is not None:
            samples = [self.samples[index] for index in part]
            given = [reference.answer for reference in references] if own else None
            prompts = self._prompts(samples, answers=answers, given=given)
            tail = run_whole(handle, self._inputs(prompts), prompts.query, prompts.tail)
            expected = prompts.answers
        else:
            first = handle.plan.stages[0].layer
            tapped = first - 1 in handle.plan.tapped
            if len(rows) == len(references):
                batch = collate(references, first, self.device, answers=answers, tapped=tapped)
            else:
                batch = collate_rows(rows, first, self.device, answers=answers, tapped=tapped)
            expected = batch.answers
            longest = max(len(answer or []) for answer in expected)
            tail = run_suffix(handle, batch.prefix, 1 + longest)
        logits = self.family.logits(tail).float()
        results = compare(tail, logits, references, expected, self.eos)
        if not own:
            return results
        moved = answer_kl(self.family, logits, references)
        return [replace(one, kl_answer=kl, correct=None) for one, kl in zip(results, moved)]

    def _prompts(
        self,
        samples: Sequence[Sample],
        *,
        answers: bool,
        given: Sequence[list[int] | None] | None = None,
    ) -> Prompts:
        kind, processor = self.family.answer_kind, self.loaded.processor
        return prepare(processor, samples, self.device, kind, answers=answers, given=given)

    def _inputs(self, prompts: Prompts) -> dict[str, Any]:
        return {
            "input_ids": prompts.input_ids,
            "attention_mask": prompts.valid.long(),
            "position_ids": given_positions(self.family, prompts),
            **prompts.pixels,
        }

    def facts(self) -> ModelFacts:
        """Return what space and budgets need to know about the model and the data."""
        count, image = len(self.samples), sum(size.image for size in self._lengths)
        text = sum(size.prompt - size.image for size in self._lengths)
        return model_facts(
            self.loaded,
            self.family,
            self.data,
            image_tokens=image / count,
            text_tokens=text / count,
            separator_share=sum(size.separators for size in self._lengths) / image,
            seen=[size.seen for size in self._lengths],
        )
