"""Whether a model answers right although it does not answer token by token as expected."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from prunetune.calibration import Sample, answer_ids, generated
from prunetune.calibration.answers import surely_said
from prunetune.families import Family
from prunetune.measure.reference import Reference
from prunetune.measure.results import SampleResult
from prunetune.numerics import exactly

_TOGETHER = 16


class Judge:
    """Lets a model finish the answers that may be right in another spelling.

    Expected answers are fed, not generated: that tells at once who gives them token by token, and
    how any other answer begins. Only where that may become a right one, it is generated.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        samples: The split.
        match: ``vqa``, ``exact`` or ``contains``.
        ends: Ids that end an answer.
    """

    def __init__(
        self, loaded: Any, samples: Sequence[Sample], match: str, ends: frozenset[int]
    ) -> None:
        self._loaded, self._samples, self._match, self._ends = loaded, samples, match, ends

    def begun(self, family: Family, reference: Reference) -> tuple[int, ...]:
        """Return how the unpruned model begins an answer that is not the expected one."""
        if self._match == "exact" or reference.correct is not False:
            return ()
        with exactly():
            predicted = family.logits(reference.tail).float().argmax(-1).tolist()
        return surely_said(predicted, reference.answer or [])

    def judged(
        self,
        applied: Callable[[], AbstractContextManager[Any]],
        results: Mapping[int, SampleResult],
    ) -> Iterator[tuple[int, SampleResult]]:
        """Yield the results that are right in another spelling.

        Args:
            applied: Applies the config that they are of, until its end.
            results: By index of the sample; one that is right already has not ``begun``.
        """
        begun = {i: r.begun for i, r in results.items()}
        for index in self.right(begun, applied):
            yield index, replace(results[index], correct=True)

    def right(
        self,
        begun: Mapping[int, Sequence[int]],
        applied: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Iterator[int]:
        """Yield the samples that the model answers right, of those that it begins like this.

        Args:
            begun: How it begins to answer each; empty where nobody asks.
            applied: Applies a config; by default none.
        """
        if self._match == "exact":
            return
        left: list[int] = []
        for index, ids in begun.items():
            if not ids:
                continue
            answer = self._expected(index)
            if not self._ends.isdisjoint(ids[-1:]):
                if answer.spelled(ids, self._ends):
                    yield index
            elif answer.may_become(ids):
                left.append(index)
        if left:
            with applied():
                yield from self._finished(left)

    def _finished(self, left: list[int]) -> Iterator[int]:
        for first in range(0, len(left), _TOGETHER):
            part = left[first : first + _TOGETHER]
            new = max(self._expected(index).new_tokens for index in part)
            with exactly():
                said = generated(self._loaded, [self._samples[index] for index in part], new)
            for index, ids in zip(part, said, strict=True):
                answer = self._expected(index)
                if answer.spelled(ids[: answer.new_tokens], self._ends):
                    yield index

    def _expected(self, index: int) -> Any:
        return answer_ids(self._loaded.processor, self._samples[index], self._match)
