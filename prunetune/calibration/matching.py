"""Whether an answer is right: as VQA counts it, to the letter, or anywhere in what is said."""

import re
import string
import unicodedata
from collections.abc import Iterable
from typing import Literal, get_args

Match = Literal["vqa", "exact", "contains"]
"""``vqa``: the same but for case, punctuation, articles and number words; ``exact``: token by
token; ``contains``: somewhere in the answer."""
MATCHES: tuple[str, ...] = get_args(Match)

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}


def normalise_answer(text: str) -> str:
    """Return the text without case, punctuation, articles and surplus space, numbers as digits.

    After VQA's evaluation (Antol et al., ICCV 2015). A decimal point and a leading minus sign stay;
    so does an answer that is nothing else, such as the letter of a multiple choice.
    """
    text = unicodedata.normalize("NFKC", text).casefold().strip()
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    kept = re.sub(r"['\u2019]", "", text)
    kept = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", kept)
    kept = re.sub(r"(?<=\w)-|-(?!\d)", " ", kept)
    removed = string.punctuation.replace(".", "").replace("-", "").replace("'", "")
    kept = " ".join(kept.translate({ord(mark): " " for mark in removed}).split())
    words = _ARTICLES.sub(" ", kept).split()
    return " ".join(_NUMBERS.get(word, word) for word in words) or kept or text


def answers_match(predicted: str, answer: str) -> bool:
    """Return whether two answers are the same after ``normalise_answer``."""
    return normalise_answer(predicted) == normalise_answer(answer)


def is_right(said: str, answers: Iterable[str], match: str) -> bool:
    """Tell whether a text is one of the right answers.

    Args:
        said: What a model answers, in full.
        answers: The right ones.
        match: ``vqa``, ``exact`` or ``contains``.
    """
    if match == "exact":
        return any(said.strip() == answer.strip() for answer in answers)
    spoken = normalise_answer(said)
    if match == "vqa":
        return any(spoken == normalise_answer(answer) for answer in answers)
    return any(f" {normalise_answer(answer)} " in f" {spoken} " for answer in answers)


def may_become(begun: str, answer: str) -> bool:
    """Tell whether what begins with a text can be an answer as VQA counts it; rather yes than no.

    Args:
        begun: The first tokens of an answer; its last word may go on.
        answer: A right answer.
    """
    spoken, wanted = _words(begun), _words(answer)
    if not spoken or not wanted or "\ufffd" in begun:
        return True
    *before, last = spoken
    head = "".join(_NUMBERS.get(word, word) for word in before if not _ARTICLES.fullmatch(word))
    target = "".join(_NUMBERS.get(word, word) for word in wanted)
    # Both ways of writing the answer: an article may be all there is of it.
    targets = {target, "".join(_NUMBERS.get(w, w) for w in wanted if not _ARTICLES.fullmatch(w))}
    for whole in targets:
        if whole.startswith(head + last):
            return True
        rest = whole[len(head) :]
        if whole.startswith(head) and (
            any(article.startswith(last) for article in ("a", "an", "the"))
            or any(word.startswith(last) and rest.startswith(n) for word, n in _NUMBERS.items())
        ):
            return True
    return False


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"[^\W_]+", re.sub(r"['\u2019]", "", text))
