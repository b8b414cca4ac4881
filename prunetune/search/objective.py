"""The objective: how far a config moves each sample's answer from the unpruned model's.

VFlowOpt's gap (arXiv 2508.05211, Eq. 8): 1 - cosine of the last prompt token's state after the
final norm, pruned against unpruned; beside it the KL divergence of the next-token distribution.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunetune.budget import ModelFacts
from prunetune.calibration import CalibrationSet, Sample
from prunetune.config import PruningConfig
from prunetune.devices import device_of
from prunetune.errors import DataError
from prunetune.runtime.apply import Handle, check_fits, family_of
from prunetune.runtime.suffix import run_suffix
from prunetune.search.facts import model_facts
from prunetune.search.packing import to_device
from prunetune.search.reference import Prompts, Recorder, Reference, prepare
from prunetune.search.store import DiskStore, MemoryStore, Store, store_key


@dataclass(frozen=True)
class SampleResult:
    """What a config did to one sample.

    Attributes:
        gap: 1 - cosine of the last prompt token's final states, in [0, 2].
        kl: KL(unpruned || pruned) of the next-token distribution, in nats.
        agrees: Whether the most likely next token is the same.
        correct: Whether greedy decoding gives exactly the expected answer; None without one.
    """

    gap: float
    kl: float
    agrees: bool
    correct: bool | None


@dataclass
class _Tokens:
    """Counts over a split.

    Attributes:
        image: Image tokens, separators included.
        separators: Separators.
        text: All other tokens of the prompts.
    """

    image: int = 0
    separators: int = 0
    text: int = 0

    def add(self, reference: Reference) -> None:
        """Count one batch; expected answers are no part of a prompt."""
        image = int(reference.image_mask.sum())
        answers = sum(len(answer or []) for answer in reference.prompts.answers)
        self.image += image
        self.text += int(reference.prompts.valid.sum()) - image - answers
        images = reference.capture.images
        self.separators += sum(int(i.geometry.separator.sum()) for i in images)


class Evaluator:
    """Measures configs on one split; everything unpruned is computed once, here.

    A trial then runs only from its first stage's layer on, on surviving tokens, under the hooks
    that a deployment uses.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        samples: The split, in the order that trials use.
        deepest: Last layer that a first stage can be at; the states entering layers up to there
            are kept, a first stage behind it costs the layers between.
        batch_size: Samples a batch.
        cache: Folder of references shared by searches; None keeps them in memory.
        cache_limit: Bytes that all references in ``cache`` may take.
        progress: Called with the number of samples done so far.

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
        batch_size: int = 16,
        cache: Path | None = None,
        cache_limit: int = 20 << 30,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if not len(samples):
            raise DataError("the split has 0 samples; allowed: 1 or more; add images")
        self.loaded = loaded
        self.data = samples
        self.samples: Sequence[Sample] = samples.samples
        self.family = family_of(loaded.model)
        self.eos = _eos_ids(loaded.model)
        self.device = device_of(loaded.model)
        self.batch_size = batch_size
        self._recorder = Recorder(self.family, deepest)
        self._store = self._open(cache, cache_limit)
        self._tokens = _Tokens()
        self.unpruned_correct: list[bool | None] = []
        for batch in range(self._batches):
            reference = self._reference(batch)
            self._tokens.add(reference)
            self.unpruned_correct += reference.correct
            if progress is not None:
                progress(len(self.unpruned_correct))

    @property
    def _batches(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def _open(self, cache: Path | None, limit: int) -> Store:
        if cache is None:
            return MemoryStore()
        order = [sample.digest() for sample in self.samples]
        key = store_key(
            self.loaded.model,
            self.loaded.fingerprint,
            hashlib.sha256("".join(order).encode()).hexdigest(),
            batch=self.batch_size,
            deepest=self._recorder.deepest,
            device=self.device.type,
        )
        return DiskStore(cache, key, limit)

    def _reference(self, batch: int) -> Reference:
        """Return a batch's reference, computing it where it is not (or no longer) kept."""
        kept = self._store.get(batch)
        if kept is not None:
            return to_device(kept, self.device)
        first = batch * self.batch_size
        samples = self.samples[first : first + self.batch_size]
        with torch.no_grad():
            prompts = prepare(self.loaded.processor, samples, self.device, self.family.answer_kind)
            self._check_images(prompts, samples)
            reference = self._finish(self._recorder.record(prompts, first))
        self._store.put(batch, reference)
        return reference

    def _check_images(self, prompts: Prompts, batch: Sequence[Sample]) -> None:
        counts = (prompts.input_ids == self.family.image_token_id).sum(1)
        for sample, count in zip(batch, counts.tolist(), strict=True):
            if not count:
                raise DataError(
                    f"sample {sample.id!r}: the prompt has no image; every sample needs one"
                )

    def _finish(self, reference: Reference) -> Reference:
        logits = self._logits(reference.tail)
        reference.log_probs = self._next(logits, reference.prompts).log_softmax(-1)
        reference.correct = exact_answers(logits.argmax(-1), reference.prompts, self.eos)
        return reference

    def _logits(self, tail: Tensor) -> Tensor:
        head = self.loaded.model.get_output_embeddings()
        logits: Tensor = head(tail).float()
        return logits

    def _next(self, logits: Tensor, prompts: Prompts) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, _in_tail(prompts)]

    def evaluate(self, config: PruningConfig) -> Iterator[list[tuple[int, SampleResult]]]:
        """Yield batches of (sample index, result) in the split's order; stop whenever you like.

        Raises:
            ConfigError: The config does not fit the model.
        """
        check_fits(self.family, config, strict=False)
        with Handle(self.family, config) as handle:
            for batch in range(self._batches):
                reference = self._reference(batch)
                with torch.no_grad():
                    results = self._measure(handle, reference)
                yield list(enumerate(results, start=reference.first))

    def _measure(self, handle: Handle, reference: Reference) -> list[SampleResult]:
        prompts = reference.prompts
        first = handle.plan.stages[0].layer
        tail = run_suffix(handle, reference.prefix(first), prompts.tail)
        return compare(tail, self._logits(tail), reference, self.eos)

    def facts(self) -> ModelFacts:
        """Return what space and budgets need to know about the model and the data."""
        tokens, count = self._tokens, len(self.samples)
        return model_facts(
            self.loaded,
            self.family,
            self.data,
            image_tokens=tokens.image / count,
            text_tokens=tokens.text / count,
            separator_share=tokens.separators / tokens.image,
        )


def compare(
    tail: Tensor, logits: Tensor, reference: Reference, eos: frozenset[int]
) -> list[SampleResult]:
    """Compare pruned final states with the reference, sample by sample.

    Args:
        tail: ``[B, t, d]`` final states of the last slots, pruned.
        logits: ``[B, t, vocabulary]`` float32.
        reference: The same batch, unpruned.
        eos: Ids that end an answer.
    """
    prompts = reference.prompts
    rows = torch.arange(len(tail), device=tail.device)
    at = _in_tail(prompts)
    # float64: near 1 a float32 cosine has steps of 6e-8.
    cosine = torch.nn.functional.cosine_similarity(
        tail[rows, at].double(), reference.tail[rows, at].double(), dim=-1
    )
    pruned = logits[rows, at].log_softmax(-1)
    kl = (reference.log_probs.exp() * (reference.log_probs - pruned)).sum(-1)
    agrees = pruned.argmax(-1) == reference.log_probs.argmax(-1)
    correct = exact_answers(logits.argmax(-1), prompts, eos)
    columns = ((1 - cosine).tolist(), kl.tolist(), agrees.tolist(), correct)
    return [SampleResult(max(0.0, g), max(0.0, k), a, c) for g, k, a, c in zip(*columns)]


def exact_answers(predicted: Tensor, prompts: Prompts, eos: frozenset[int]) -> list[bool | None]:
    """Tell for each sample whether greedy decoding gives exactly the expected answer.

    Greedy decoding yields the answer if and only if, with the answer's tokens fed in, the most
    likely token is right at every position and an end token follows.

    Args:
        predicted: ``[B, t]`` most likely next tokens at the last slots.
        prompts: The batch.
        eos: Ids that end an answer; empty: any token may follow.
    """
    result: list[bool | None] = []
    for row, start, answer in zip(predicted.tolist(), _in_tail(prompts).tolist(), prompts.answers):
        if answer is None:
            result.append(None)
            continue
        ended = not eos or row[start + len(answer)] in eos
        result.append(row[start : start + len(answer)] == answer and ended)
    return result


def _in_tail(prompts: Prompts) -> Tensor:
    return prompts.query - (prompts.input_ids.shape[1] - prompts.tail)


def _eos_ids(model: Any) -> frozenset[int]:
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)
