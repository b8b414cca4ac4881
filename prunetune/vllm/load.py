"""Requests a second and the time to the first token of an engine under a steady load."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class _Request:
    began: float
    first: float | None = None


def measured(
    llm: Any, prompts: list[Any], sampling: dict[str, Any], at_once: int
) -> dict[str, Any]:
    """Ask all prompts, so many at once, and return what it took.

    A request that ends makes room for the next one. What prepares the pictures runs in the same
    process, as much of it unpruned as pruned.

    Args:
        llm: ``vllm.LLM``, in this process.
        prompts: Each asked once; no two share a picture.
        sampling: Of ``vllm.SamplingParams``.
        at_once: Requests.
    """
    from vllm import SamplingParams

    engine, waiting = llm.llm_engine, _numbered(prompts)
    parameters = SamplingParams(**sampling)
    running: dict[str, _Request] = {}
    # What an earlier round encoded is encoded again.
    engine.reset_mm_cache()
    engine.reset_encoder_cache()
    firsts: list[float] = []
    lengths: list[int] = []
    began = time.perf_counter()

    def start() -> None:
        for number, prompt in waiting:
            running[number] = _Request(time.perf_counter())
            engine.add_request(number, prompt, parameters)
            return

    for _ in range(at_once):
        start()
    while running:
        for output in engine.step():
            request = running.get(output.request_id)
            if request is None:
                continue
            if request.first is None and output.outputs[0].token_ids:
                request.first = time.perf_counter()
                firsts.append(request.first - request.began)
                lengths.append(len(output.prompt_token_ids))
            if output.finished:
                del running[output.request_id]
                start()
    return {
        "seconds": time.perf_counter() - began,
        "firsts": firsts,
        "prompt_tokens": sum(lengths) / len(lengths),
    }


def _numbered(prompts: list[Any]) -> Iterator[tuple[str, Any]]:
    for number, prompt in enumerate(prompts):
        yield f"{time.perf_counter_ns()}-{number}", prompt
