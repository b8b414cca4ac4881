"""Compares a config in vLLM with the same in transformers: answers, token counts, kept sets."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.calibration import Sample, answer_ids, end_ids, gives_answer
from prunetune.calibration.answers import Expected
from prunetune.config import PruningConfig
from prunetune.deploy.engines import Answer, answers, answers_of, asked
from prunetune.models.load import find_model
from prunetune.vllm.jobs import Job, ask

NEW_TOKENS = 16
"""Of an answer, at least; more where the expected answers ask for it."""
SLACK = 0.05
"""Share of prompts whose answers may differ beyond those that differ unpruned, too."""
LEAST_OVERLAP = 0.95
"""Of two kept sets, on the mean: near ties fall either way between two engines."""


@dataclass(frozen=True)
class InVllm:
    """What came of the comparison.

    Attributes:
        samples: Prompts.
        same_unpruned: Answers that are the same in both engines without a config.
        same: With it, one prompt after another.
        same_at_once: With it, all prompts at once.
        counts_exact: Whether every prompt has as many tokens as the config says.
        pictures: Pictures whose kept sets were compared.
        same_sets: Those whose sets are the same.
        overlap: Mean share of a set's tokens that the other has, too.
        prompt_tokens: Mean, pruned.
        unpruned_tokens: Mean, unpruned.
        right: Share of expected answers that vLLM gives with the config, one prompt after another;
            None where no sample has one.
        right_unpruned: The same without it.
        right_in_transformers: What transformers gives with it.
        versions: Of vLLM, torch and transformers.
    """

    samples: int
    same_unpruned: int
    same: int
    same_at_once: int
    counts_exact: bool
    pictures: int
    same_sets: int
    overlap: float
    prompt_tokens: float
    unpruned_tokens: float
    right: float | None
    right_unpruned: float | None
    right_in_transformers: float | None
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether the engines agree as far as they do without a config."""
        least = self.same_unpruned - max(1, round(SLACK * self.samples))
        answers_hold = min(self.same, self.same_at_once) >= least
        return self.counts_exact and answers_hold and self.overlap >= LEAST_OVERLAP


def verify_in_vllm(
    config: PruningConfig,
    loaded: Any,
    samples: Sequence[Sample],
    *,
    revision: str | None = None,
    dtype: str = "float32",
    match: str = "vqa",
    advance: Callable[[], None] = lambda: None,
) -> InVllm:
    """Ask both engines the same prompts, greedily, with the config and without.

    Args:
        config: The config.
        loaded: ``prunetune.models.LoadedModel``.
        samples: Pictures and questions.
        revision: Of a model from the hub.
        dtype: Of vLLM's weights, by name.
        match: How answers are compared with the expected ones: ``vqa``, ``exact`` or ``contains``.
        advance: Called after every prompt that transformers has answered.

    Raises:
        ConfigError: vLLM is not installed, cannot run the config, or failed.
    """
    wanted = [answer_ids(loaded.processor, sample, match) for sample in samples]
    new = max([NEW_TOKENS, *(answer.new_tokens for answer in wanted if answer is not None)])
    given, versions = _there(config, loaded, samples, new, revision, dtype)
    plain, pruned = (
        answers(loaded, c, samples, new_tokens=new, advance=advance) for c in (None, config)
    )
    overlaps = _overlaps(given.alone, pruned)
    ends = end_ids(loaded.model)
    return InVllm(
        samples=len(samples),
        same_unpruned=_same(given.unpruned, plain),
        same=_same(given.alone, pruned),
        same_at_once=_same(given.at_once, pruned),
        counts_exact=_counts_exact(given, plain, pruned),
        pictures=len(overlaps),
        same_sets=sum(share == 1.0 for share in overlaps),
        overlap=sum(overlaps) / len(overlaps) if overlaps else 0.0,
        prompt_tokens=_mean(given.alone),
        unpruned_tokens=_mean(given.unpruned),
        right=_right(given.alone, wanted, ends),
        right_unpruned=_right(given.unpruned, wanted, ends),
        right_in_transformers=_right(pruned, wanted, ends),
        versions=versions,
    )


@dataclass(frozen=True)
class _Given:
    """What vLLM answered: without the config, and with it one by one and all at once."""

    unpruned: list[Answer]
    alone: list[Answer]
    at_once: list[Answer]


def _there(
    config: PruningConfig,
    loaded: Any,
    samples: Sequence[Sample],
    new: int,
    revision: str | None,
    dtype: str,
) -> tuple[_Given, dict[str, str]]:
    """Return what vLLM answers, and the versions that it ran with."""
    folder, model_type = find_model(loaded.name, revision)
    most = max(len(sample.images) for sample in samples)
    engine = {
        "dtype": dtype,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "limit_mm_per_prompt": {"image": most, **({"video": 0} if "qwen" in model_type else {})},
    }
    runs: list[dict[str, Any]] = [{"name": "alone", "alone": True}, {"name": "at once"}]
    sampling = {"max_tokens": new}
    with tempfile.TemporaryDirectory(prefix="prunetune-pictures-") as place:
        prompts = asked(loaded.processor, samples, Path(place))
        jobs = [
            Job(str(folder), model_type, c, prompts, asked_for, engine, sampling)
            for c, asked_for in ((None, runs[1:]), (config, runs))
        ]
        plain, pruned = ask(jobs)
    done = (*plain["runs"], *pruned["runs"])
    return _Given(*(answers_of(run["rounds"][0]) for run in done)), pruned["versions"]


def _counts_exact(given: _Given, plain: Sequence[Answer], pruned: Sequence[Answer]) -> bool:
    pairs = ((given.unpruned, plain), (given.alone, pruned), (given.at_once, pruned))
    return all(
        mine.prompt_tokens == other.prompt_tokens
        for ours, theirs in pairs
        for mine, other in zip(ours, theirs, strict=True)
    )


def _same(ours: Sequence[Answer], theirs: Sequence[Answer]) -> int:
    return sum(a.ids == b.ids for a, b in zip(ours, theirs, strict=True))


def _mean(given: Sequence[Answer]) -> float:
    return sum(answer.prompt_tokens for answer in given) / len(given)


def _right(
    given: Sequence[Answer], wanted: Sequence[Expected | None], ends: frozenset[int]
) -> float | None:
    pairs = [(a.ids, e) for a, e in zip(given, wanted, strict=True) if e is not None]
    told = [bool(gives_answer(ids[: e.new_tokens], e, ends)) for ids, e in pairs]
    return sum(told) / len(told) if told else None


def _overlaps(ours: Sequence[Answer], theirs: Sequence[Answer]) -> list[float]:
    """Return the overlap of both engines' sets of each picture that vLLM encoded.

    A picture that an earlier prompt had is not encoded again.
    """
    shares = []
    for mine, other in zip(ours, theirs, strict=True):
        if len(mine.kept) != len(other.kept):
            continue
        for (total, one), (length, two) in zip(mine.kept, other.kept, strict=True):
            common = len({*one} & {*two}) if total == length else 0
            shares.append(common / max(len(one), len(two), 1))
    return shares
