"""Measures what a config pays in vLLM: unpruned, pruned, and rivals at the same token count.

Rivals are ``uniform``, and smaller pictures with as many tokens (``resized``) where a model takes
pictures of any size.
"""

import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.budget import mean_retention
from prunetune.calibration import Sample, encode
from prunetune.config import PruningConfig
from prunetune.deploy.bench import UNPRUNED, uniform_like
from prunetune.deploy.engines import asked
from prunetune.deploy.request import largest_within, noise
from prunetune.deploy.timing import Spread, spread
from prunetune.models.described import config_of
from prunetune.models.load import find_model
from prunetune.models.processors import load_processor
from prunetune.vllm.fits import by_view
from prunetune.vllm.jobs import Asked, Job, ask

CONCURRENCY = (1, 8, 32)
LEAST, EACH = 4, 2
"""Requests of a round: so many for each at once, not fewer than that, ``requests`` at most."""
QUESTION = "what is it ?"


@dataclass(frozen=True)
class Served:
    """One case at one load.

    Attributes:
        name: ``unpruned``, ``pruned``, ``uniform`` or ``resized``.
        concurrency: Requests at once.
        rate: Requests a second, over the rounds.
        first: Seconds to the first token, medians of the rounds.
        prompt_tokens: Tokens that a request's prompt takes in the KV cache.
        rate_ratio: Over the unpruned rate.
        first_ratio: Over the unpruned time.
        verdict: A sentence; empty for ``unpruned``.
    """

    name: str
    concurrency: int
    rate: Spread
    first: Spread
    prompt_tokens: float
    rate_ratio: float
    first_ratio: float
    verdict: str


@dataclass(frozen=True)
class ServedBench:
    """A whole measurement.

    Attributes:
        cases: By load, unpruned first.
        requests: Of a round, by load.
        rounds: Of each case and load.
        versions: Of vLLM, torch and transformers.
    """

    cases: tuple[Served, ...]
    requests: tuple[int, ...]
    rounds: int
    versions: dict[str, str]


def bench_in_vllm(
    config: PruningConfig,
    name: str,
    *,
    concurrency: Sequence[int] = CONCURRENCY,
    requests: int = 32,
    rounds: int = 5,
    new_tokens: int = 32,
    size: tuple[int, int] = (672, 672),
    revision: str | None = None,
    dtype: str = "auto",
    engine: dict[str, Any] | None = None,
) -> ServedBench:
    """Measure a config in vLLM, each case with an engine of its own, one after another.

    Args:
        config: The config.
        name: Of the model.
        concurrency: Requests at once.
        requests: Of a round, at most; each has a picture of noise that no other has.
        rounds: That count, after a few requests that do not.
        new_tokens: Of an answer.
        size: Height and width of the pictures.
        revision: Of a model from the hub.
        dtype: Of the weights.
        engine: Further settings, as ``vllm.LLM`` takes them.

    Raises:
        ConfigError: vLLM is not installed, cannot run the config, or failed.
    """
    folder, model_type = find_model(name, revision)
    settings = {
        "dtype": dtype,
        "enable_prefix_caching": False,
        # A picture of an earlier round is encoded again.
        "mm_processor_cache_gb": 0,
        "max_num_seqs": max(concurrency),
        "limit_mm_per_prompt": {"image": 1, **({"video": 0} if "qwen" in model_type else {})},
        **(engine or {}),
    }
    sampling = {"max_tokens": new_tokens, "ignore_eos": True}
    counts = [min(requests, max(LEAST, EACH * at_once)) for at_once in concurrency]
    loads = [[*load, rounds] for load in zip(concurrency, counts, strict=True)]
    runs = [{"name": "loads", "loads": loads}]
    with tempfile.TemporaryDirectory(prefix="prunetune-pictures-") as place:
        cases = _cases(config, load_processor(folder), folder, size, max(counts), Path(place))
        jobs = [
            Job(str(folder), model_type, c, prompts, runs, settings, sampling)
            for c, prompts in cases.values()
        ]
        found = dict(zip(cases, ask(jobs), strict=True))
    served = [
        _served(case, load, count, number, found)
        for number, (load, count) in enumerate(zip(concurrency, counts, strict=True))
        for case in cases
    ]
    return ServedBench(tuple(served), tuple(counts), rounds, found["pruned"]["versions"])


def _cases(
    config: PruningConfig,
    processor: Any,
    folder: Path,
    size: tuple[int, int],
    requests: int,
    place: Path,
) -> dict[str, tuple[PruningConfig | None, list[Asked]]]:
    """Return by case the config and what is asked."""

    def prompts(pixels: tuple[int, int], name: str) -> list[Asked]:
        (place / name).mkdir()
        samples = [Sample((noise(pixels, seed),), QUESTION) for seed in range(requests)]
        return asked(processor, samples, place / name)

    full = prompts(size, "full")
    made: dict[str, tuple[PruningConfig | None, list[Asked]]] = {
        UNPRUNED: (None, full),
        "pruned": (config, full),
        "uniform": (by_view(uniform_like(config)), full),
    }
    smaller = _smaller(config, processor, folder, size)
    return made if smaller is None else {**made, "resized": (None, prompts(smaller, "small"))}


def _smaller(
    config: PruningConfig, processor: Any, folder: Path, size: tuple[int, int]
) -> tuple[int, int] | None:
    """Return the size of pictures that take as many tokens as are kept; None: they cannot."""
    from prunetune.vllm.choosing import family_like

    family = family_like(config_of(folder))

    def count(pixels: tuple[int, int]) -> int:
        ids = encode(processor, [Sample((noise(pixels, 0),), QUESTION)])["input_ids"]
        return int(ids.eq(family.image_token_id).sum())

    share = mean_retention(config.stages, config.model.num_layers)
    return largest_within(count, size, math.ceil(share * count(size) - 1e-9))


def _served(case: str, load: int, requests: int, number: int, found: dict[str, Any]) -> Served:
    rate, first, tokens = _figures(found[case]["runs"][0]["rounds"][number], requests)
    before, waited, _ = _figures(found[UNPRUNED]["runs"][0]["rounds"][number], requests)
    return Served(
        case,
        load,
        rate,
        first,
        tokens,
        rate.median / before.median,
        first.median / waited.median,
        "" if case == UNPRUNED else judged(before, rate),
    )


def _figures(rounds: Sequence[dict[str, Any]], requests: int) -> tuple[Spread, Spread, float]:
    return (
        spread([requests / each["seconds"] for each in rounds]),
        spread([statistics.median(each["firsts"]) for each in rounds]),
        rounds[0]["prompt_tokens"],
    )


def judged(before: Spread, after: Spread) -> str:
    """Return whether pruning pays: only where the intervals of the rounds do not meet."""
    times = f"{after.median / before.median:.2f}x the requests a second"
    shown = f"{times} ({before.low:.2f} to {before.high:.2f} before, {after.low:.2f} to "
    shown += f"{after.high:.2f} after)"
    if after.low > before.high:
        return f"pays: {shown}"
    if after.high < before.low:
        return f"does not pay: {shown}"
    return f"breaks even: {shown} is no difference beyond the spread"
