"""Answers: a model's own, and expected ones: their tokens, ends, and whether a model gives one."""

from collections.abc import Iterable, Sequence
from typing import Any

from prunetune.calibration.collate import encode
from prunetune.calibration.dataset import Sample
from prunetune.calibration.matching import is_right, may_become
from prunetune.models.devices import device_of

_SLACK, _ANYWHERE = 4, 32
"""Tokens beyond the expected answer's in another spelling, and those it may be anywhere in."""


class Expected(list[int]):
    """An expected answer: its tokens, and what tells another spelling of it.

    Args:
        ids: The tokens.
        texts: The right answers, the one of the tokens first.
        match: ``vqa``, ``exact`` or ``contains``.
        tokenizer: Of the model.
    """

    def __init__(
        self, ids: Iterable[int], texts: Sequence[str], match: str, tokenizer: Any
    ) -> None:
        super().__init__(ids)
        self.texts, self.match, self._tokenizer = tuple(texts), match, tokenizer

    @property
    def new_tokens(self) -> int:
        """How many tokens a model is given to answer."""
        if self.match == "exact":
            return 1 + len(self)
        others = (len(_ids(self._tokenizer, text)) for text in self.texts[1:])
        most = 1 + max(len(self), *others, 0) + _SLACK
        return max(most, _ANYWHERE) if self.match == "contains" else most

    def spelled(self, said: Sequence[int], ends: frozenset[int]) -> bool:
        """Tell whether what was generated is the answer, however it is spelled.

        Args:
            said: Token ids from the first one after the prompt on.
            ends: Ids that end an answer.
        """
        whole = next((k for k, token in enumerate(said) if token in ends), None)
        if self.match == "exact":
            return False
        if whole is not None or self.match == "contains":
            return is_right(self._text(said[:whole]), self.texts, self.match)
        # Where nothing ends an answer, whatever follows it does not count.
        counts = range(1, len(said) + 1) if not ends else ()
        return any(is_right(self._text(said[:k]), self.texts, self.match) for k in counts)

    def may_become(self, begun: Sequence[int]) -> bool:
        """Tell whether what begins with these tokens can be the answer; rather yes than no."""
        if self.match != "vqa":
            return self.match == "contains"
        return any(may_become(self._text(begun), text) for text in self.texts)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def generated(loaded: Any, samples: Sequence[Sample], new_tokens: int) -> list[list[int]]:
    """Return the token ids that a model answers each sample with, decoded greedily.

    Args:
        loaded: ``prunetune.models.LoadedModel``; a config that is applied counts.
        samples: At least one.
        new_tokens: At most so many; where an answer ends before others, padding follows.
    """
    inputs = encode(loaded.processor, samples).to(device_of(loaded.model))
    ids = loaded.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1)
    said: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return said


def greedy_answer(loaded: Any, sample: Sample, new_tokens: int) -> str:
    """Return what a model answers to a sample, under the config that is applied, if one is.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        sample: With at least one picture.
        new_tokens: At most so many.
    """
    new = generated(loaded, [sample], new_tokens)[0]
    text: str = loaded.processor.tokenizer.decode(new, skip_special_tokens=True)
    return text.strip()


def answer_ids(processor: Any, sample: Sample, match: str = "vqa") -> Expected | None:
    """Return the tokens of a sample's expected answer; None where it has none.

    Args:
        processor: Of the model.
        sample: With its answer.
        match: How answers are compared.
    """
    if sample.answer is None:
        return None
    tokenizer = processor.tokenizer
    texts = [sample.answer, *sample.also]
    return Expected(_ids(tokenizer, sample.answer), texts, match, tokenizer)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_ids(model: Any) -> frozenset[int]:
    """Return the ids that end what a model generates; empty where it says none."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def gives_answer(
    said: Sequence[int], answer: list[int] | None, ends: frozenset[int]
) -> bool | None:
    """Tell whether what a model generated is the expected answer, as its ``match`` compares.

    Args:
        said: Token ids from the first one after the prompt on.
        answer: From ``answer_ids``; plain token ids are compared token by token; None: not asked.
        ends: Ids that end an answer.
    """
    told = same_tokens(said, answer, ends)
    if told is False and isinstance(answer, Expected):
        return answer.spelled(said, ends)
    return told


exact_answer = gives_answer
"""Its name in releases that compared token by token only."""


def same_tokens(
    predicted: Sequence[int], answer: list[int] | None, ends: frozenset[int]
) -> bool | None:
    """Tell whether greedy decoding gives exactly the expected answer, token by token.

    Greedy decoding yields the answer if and only if, with the answer's tokens fed in, the most
    likely token is right at every position and an end token follows. So what was predicted may be
    either: the most likely tokens over a fed answer, or what was generated.

    Args:
        predicted: Token ids from the first one after the prompt on; may end early.
        answer: Token ids; None: not asked.
        ends: Ids that end an answer; empty: any token may follow.
    """
    if answer is None:
        return None
    ended = not ends or not ends.isdisjoint(predicted[len(answer) :][:1])
    return list(predicted[: len(answer)]) == answer and ended


def surely_said(predicted: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens that greedy decoding surely begins with.

    Args:
        predicted: The most likely tokens over a fed answer, from the first one after the prompt on.
        answer: What was fed; up to where both part, feeding it was decoding.
    """
    same = next((k for k, (p, a) in enumerate(zip(predicted, answer)) if p != a), len(answer))
    return tuple(predicted[: same + 1])
