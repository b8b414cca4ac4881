"""Measures what a config pays in vLLM: unpruned, pruned, and ``uniform`` at the same count."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.calibration import Sample
from prunetune.config import PruningConfig
from prunetune.deploy.bench import UNPRUNED, uniform_like
from prunetune.deploy.engines import asked
from prunetune.deploy.request import noise
from prunetune.deploy.timing import Spread, spread
from prunetune.models.load import find_model
from prunetune.models.processors import load_processor
from prunetune.vllm.jobs import Job, ask

CONCURRENCY = (1, 8, 32)


@dataclass(frozen=True)
class Served:
    """One case at one load.

    Attributes:
        name: ``unpruned``, ``pruned`` or ``uniform``.
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
        requests: Of a round.
        rounds: Of each case and load.
        versions: Of vLLM, torch and transformers.
    """

    cases: tuple[Served, ...]
    requests: int
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
        requests: Of a round; each has a picture of noise that no other has.
        rounds: That count, after one that does not.
        new_tokens: Of an answer.
        size: Height and width of the pictures.
        revision: Of a model from the hub.
        dtype: Of the weights.
        engine: Further settings, as ``vllm.LLM`` takes them.

    Raises:
        ConfigError: vLLM is not installed, cannot run the config, or failed.
    """
    folder, model_type = find_model(name, revision)
    configs = {UNPRUNED: None, "pruned": config, "uniform": uniform_like(config)}
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
    with tempfile.TemporaryDirectory(prefix="prunetune-pictures-") as place:
        samples = [Sample((noise(size, seed),), "what is it ?") for seed in range(requests)]
        prompts = asked(load_processor(folder), samples, Path(place))
        runs = [{"name": str(c), "concurrency": c, "rounds": rounds + 1} for c in concurrency]
        found = {
            case: ask([Job(str(folder), model_type, c, prompts, runs, settings, sampling)])[0]
            for case, c in configs.items()
        }
    cases = [
        _served(case, load, requests, number, found)
        for number, load in enumerate(concurrency)
        for case in configs
    ]
    return ServedBench(tuple(cases), requests, rounds, found["pruned"]["versions"])


def _served(case: str, load: int, requests: int, number: int, found: dict[str, Any]) -> Served:
    rate, first, tokens = _figures(found[case]["runs"][number]["rounds"][1:], requests)
    before, waited, _ = _figures(found[UNPRUNED]["runs"][number]["rounds"][1:], requests)
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
