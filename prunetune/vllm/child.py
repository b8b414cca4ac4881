"""A process with vLLM in it, that answers a JSON file: ``python -m prunetune.vllm.child``.

Its own process, because vLLM keeps memory and has to be told of a config before it is imported by
others. ``jobs.py`` is the other side.
"""

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from prunetune.vllm.switch import ENVIRONMENT
from prunetune.vllm.trace import NOTES


def main(job_file: str, result_file: str) -> None:
    """Do jobs one after another and write what came of them."""
    jobs = json.loads(Path(job_file).read_text("utf-8"))
    Path(result_file).write_text(json.dumps([_tried(job) for job in jobs]), "utf-8")


def _tried(job: dict[str, Any]) -> dict[str, Any]:
    """Return what came of a job, or its error: the others are done all the same."""
    try:
        return _done({**job, "sampling": _numbered(job["sampling"])})
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _done(job: dict[str, Any]) -> dict[str, Any]:
    _switch(job)
    return {
        "runs": [_run(job, asked) for asked in job["runs"]],
        "refusals": [_refusal(job, engine) for engine in job.get("refusals", [])],
        "versions": _versions(),
    }


def _switch(job: dict[str, Any]) -> None:
    from vllm.model_executor.model_loader import utils
    from vllm.plugins import load_general_plugins

    os.environ.pop(ENVIRONMENT, None)
    # Once a process; it would put back what is registered below.
    load_general_plugins()
    # A model's class is remembered by its folder: the one of the job before.
    utils._MODEL_ARCH_BY_HASH.clear()
    if job["config"] is not None:
        os.environ[ENVIRONMENT] = job["config"]
        _switch_on()
        return
    from prunetune.vllm.names import use_new_names

    use_new_names(job["model_type"])


def _switch_on() -> None:
    from vllm import ModelRegistry

    from prunetune.vllm import models
    from prunetune.vllm.engine import pruning_class, switch_on

    switch_on()
    # Not by name: that would cost a further process, and this one has no others to start.
    arch, name = pruning_class()
    ModelRegistry.register_model(arch, getattr(models, name))


def _versions() -> dict[str, str]:
    import torch
    import transformers
    import vllm

    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _run(job: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Start an engine, ask it all prompts, and end it."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    began = time.perf_counter()
    llm = LLM(**{**job["engine"], **asked.get("engine", {})})
    loaded = time.perf_counter() - began
    prompts = [_prompt(each) for each in job["prompts"]]
    rounds: list[Any]
    if "loads" in asked:
        from prunetune.vllm.load import measured

        measured(llm, prompts[:2], job["sampling"], 1)
        rounds = [
            [measured(llm, prompts[:count], job["sampling"], at_once) for _ in range(number)]
            for at_once, count, number in asked["loads"]
        ]
    else:
        rounds = [_round(llm, prompts, job, asked) for _ in range(asked.get("rounds", 1))]
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return {"name": asked["name"], "load": loaded, "rounds": rounds}


def _refusal(job: dict[str, Any], engine: dict[str, Any]) -> str | None:
    """Return what an engine of these settings is refused with; None: it was not."""
    from vllm.engine.arg_utils import EngineArgs

    try:
        EngineArgs(**{**job["engine"], **engine}).create_engine_config()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _round(llm: Any, prompts: list[Any], job: dict[str, Any], asked: dict[str, Any]) -> Any:
    NOTES.on = True
    began = time.perf_counter()
    sets = []
    outputs: list[Any] = []
    for batch in [[prompt] for prompt in prompts] if asked.get("alone") else [prompts]:
        NOTES.kept.clear()
        outputs += _generate(llm, batch, job["sampling"])
        sets.append([(each.total, list(each.alive)) for each in NOTES.kept])
    return {
        "seconds": time.perf_counter() - began,
        "answers": [
            {
                "ids": list(output.outputs[0].token_ids),
                "text": output.outputs[0].text,
                "prompt_tokens": len(output.prompt_token_ids),
                "cached": output.num_cached_tokens or 0,
            }
            for output in outputs
        ],
        "kept": sets,
    }


def _generate(llm: Any, prompts: list[Any], sampling: dict[str, Any]) -> list[Any]:
    from vllm import SamplingParams

    outputs: list[Any] = llm.generate(prompts, SamplingParams(**sampling), use_tqdm=False)
    return outputs


def _numbered(sampling: dict[str, Any]) -> dict[str, Any]:
    """Return settings with token ids as numbers: JSON has no such keys."""
    bias = {int(token): value for token, value in sampling.get("logit_bias", {}).items()}
    return {**sampling, "logit_bias": bias or None}


def _prompt(each: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    prompt: dict[str, Any] = {"prompt_token_ids": each["ids"]}
    data: dict[str, Any] = {}
    if each.get("images"):
        data["image"] = [Image.open(path).convert("RGB") for path in each["images"]]
    if each.get("videos"):
        import numpy

        data["video"] = [numpy.load(path, allow_pickle=False) for path in each["videos"]]
    return {**prompt, "multi_modal_data": data} if data else prompt


if __name__ == "__main__":
    main(*sys.argv[1:])
