"""What is computed once of a split: references of its pictures, at one level of pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prunetune.calibration import Sample, same_tokens
from prunetune.errors import DataError
from prunetune.families import Family
from prunetune.measure.answering import Judge
from prunetune.measure.batching import Length, by_images, mates_of
from prunetune.measure.continued import ContinuingRecorder
from prunetune.measure.prompts import Prompts, prepare
from prunetune.measure.reference import Reference
from prunetune.measure.store import DiskStore, MemoryStore, Store, store_key
from prunetune.numerics import exactly


@dataclass(frozen=True)
class Split:
    """A split and what runs it.

    Attributes:
        loaded: ``prunetune.models.LoadedModel``.
        family: View of its model.
        samples: In the order that trials use.
        device: Of the model.
        eos: Ids that end an answer.
        recorder: Runs the model unpruned.
        own: Most tokens of the model's own answers; 0: they are not asked for.
        match: How answers are compared, see ``calibration.matching``.
    """

    loaded: Any
    family: Family
    samples: Sequence[Sample]
    device: torch.device
    eos: frozenset[int]
    recorder: ContinuingRecorder
    own: int = 0
    match: str = "exact"

    def judge(self, processor: Any) -> Judge:
        """Return what judges answers to pictures that a processor prepares."""
        loaded = replace(self.loaded, processor=processor)
        return Judge(loaded, self.samples, self.match, self.eos)


@dataclass(frozen=True)
class Room:
    """Where references are kept.

    Attributes:
        cache: Folder of references shared by searches; None keeps them in memory.
        limit: Bytes that all references in ``cache`` may take.
        in_memory: Bytes up to which references stay in memory although there is a ``cache``.
    """

    cache: Path | None = None
    limit: int = 20 << 30
    in_memory: int = 0


class References:
    """One reference a sample, computed at once, kept, and computed again where it is not.

    Args:
        split: What is run.
        processor: Of the model; resizing, at a level below the full picture.
        room: Where they are kept.
        given: Token ids that follow each prompt instead of the expected answer; with it nobody
            asks for the model's own answers.
        key: What else they depend on.
        progress: Called with the number of samples done so far.

    Raises:
        DataError: A prompt has no image.
    """

    def __init__(
        self,
        split: Split,
        processor: Any,
        room: Room,
        *,
        given: Sequence[list[int]] | None = None,
        key: Mapping[str, Any] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.split, self.processor, self._given = split, processor, given
        self._own = split.own if given is None else 0
        self._options = dict(key or {})
        self._store: Store
        self.lengths: list[Length] = []
        self.correct: list[bool | None] = []
        self._compute(room, progress)

    @cached_property
    def mates(self) -> dict[str, list[int]]:
        """The samples of each shared beginning."""
        return mates_of(self.lengths)

    def _compute(self, room: Room, progress: Callable[[int], None]) -> None:
        samples = self.split.samples
        lengths: dict[int, Length] = {}
        correct: dict[int, bool | None] = {}
        begun: dict[int, tuple[int, ...]] = {}
        judge = self.split.judge(self.processor)
        memory, taken = MemoryStore(), 0
        self._store = memory
        order = by_images(samples)
        first = self._record(0, order[0][1])
        foreseen = len(samples) * first.nbytes
        for index, more in order:
            reference = self.get(index, first if index == 0 else None, more=more)
            taken += reference.nbytes
            most = max(foreseen, taken)
            # The first sample may be the smallest: what is there already counts, too.
            if self._store is memory and room.cache is not None and most > room.in_memory:
                names = [sample.digest()[:32] for sample in samples]
                self._store = disk = DiskStore(room.cache, self._key(), names, room.limit)
                disk.foresee(most)
                memory.move_to(disk)
            lengths[index] = Length.of(reference)
            correct[index] = reference.correct
            begun[index] = judge.begun(self.split.family, reference)
            progress(len(lengths))
        self.split.recorder.forget()
        self.lengths = [lengths[index] for index in range(len(samples))]
        correct |= dict.fromkeys(judge.right(begun), True)
        self.correct = [correct[index] for index in range(len(samples))]

    def _key(self) -> str:
        loaded = self.split.loaded
        return store_key(
            loaded.model,
            loaded.fingerprint,
            deepest=self.split.recorder.deepest,
            device=self.split.device.type,
            eos=sorted(self.split.eos),
            pictures=str(getattr(self.processor, "image_processor", "")),
            template=str(getattr(self.processor, "chat_template", "")),
            # Nobody else's key changes with these.
            **({"own": self._own} if self._own else {}),
            **self._options,
        )

    def get(
        self, index: int, computed: Reference | None = None, *, more: bool = False
    ) -> Reference:
        """Return a sample's reference, computing it where it is not (or no longer) kept."""
        kept = self._store.get(index)
        if kept is None:
            kept = computed or self._record(index, more)
            self._store.put(index, kept)
        return kept

    def _record(self, index: int, more: bool) -> Reference:
        sample, family = self.split.samples[index], self.split.family
        with exactly():
            given = None if self._given is None else [self._given[index]]
            prompts = self.prompts([sample], answers=True, given=given)
            if not bool((prompts.input_ids == family.image_token_id).any()):
                raise DataError(
                    f"sample {sample.id!r}: the prompt has no image; every sample needs one"
                )
            reference = self.split.recorder.record(
                prompts, more=more, own=self._own, ends=self.split.eos
            )
            logits = family.logits(reference.tail).float()
        reference.log_probs = logits[0].log_softmax(-1)
        said = logits.argmax(-1).tolist()
        reference.correct = same_tokens(said, reference.answer, self.split.eos)
        return reference

    def prompts(
        self,
        samples: Sequence[Sample],
        *,
        answers: bool,
        given: Sequence[list[int] | None] | None = None,
    ) -> Prompts:
        """Return samples as the model takes them."""
        kind, device = self.split.family.answer_kind, self.split.device
        return prepare(self.processor, samples, device, kind, answers=answers, given=given)
