"""Asks vLLM in a process of its own: the other side of ``child.py``; imports no vLLM."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.vllm.switch import ENVIRONMENT

QUIET = {
    # In one process: what was kept is read from the model's memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# Without them vLLM takes half of the memory for its cache, and binds itself to cores.
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_LAST_LINES = 4


@dataclass(frozen=True)
class Asked:
    """A prompt.

    Attributes:
        ids: Its tokens, one placeholder for a picture.
        images: Files of its pictures.
        videos: Files of its videos, ``.npy`` of ``[frames, height, width, 3]`` uint8.
    """

    ids: list[int]
    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What a child does under one config.

    Attributes:
        folder: The model's.
        model_type: Of the model.
        config: None for vLLM as it is.
        prompts: All of them are asked in every run.
        runs: ``name``; ``engine``: further settings; ``alone``: one prompt after another;
            ``rounds``: how often with the same engine; ``loads``: measurements instead, of each
            how many requests at once, how many in a round, and how many rounds.
        engine: Settings of all runs, as ``vllm.LLM`` takes them.
        sampling: As ``vllm.SamplingParams`` takes it.
        refusals: Settings of engines that are not started, but checked.
    """

    folder: str
    model_type: str
    config: PruningConfig | None
    prompts: Sequence[Asked]
    runs: Sequence[dict[str, Any]]
    engine: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    refusals: Sequence[dict[str, Any]] = ()


def installed() -> bool:
    """Tell whether vLLM is installed."""
    found = importlib.util.find_spec("vllm")
    # A folder of that name on the path is no package.
    return found is not None and found.origin is not None


def ask(jobs: Sequence[Job], *, strict: bool = True) -> list[dict[str, Any]]:
    """Do jobs in one child and return what came of each.

    Args:
        jobs: Done one after another.
        strict: Raise where one failed, instead of telling with ``error`` in its place.

    Raises:
        ConfigError: vLLM is not installed, or the child failed.
    """
    if not installed():
        raise ConfigError("vllm is not installed; run: pip install 'prunetune[vllm]'")
    with tempfile.TemporaryDirectory(prefix="prunetune-vllm-") as place:
        folder = Path(place)
        data = [_data(job, folder / f"{number}.prune.json") for number, job in enumerate(jobs)]
        (folder / "jobs.json").write_text(json.dumps(data), "utf-8")
        # In this process's folder, which paths of the caller's may be relative to.
        command = [sys.executable, "-m", "prunetune.vllm.child"]
        command += [str(folder / name) for name in ("jobs.json", "results.json")]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ConfigError(f"vLLM failed: {_reason(done.stderr)}")
        found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text("utf-8"))
        if (first := next((each["error"] for each in found if "error" in each), None)) and strict:
            raise ConfigError(f"vLLM failed: {first}")
        return found


def environment() -> dict[str, str]:
    """Return the variables of a child: ours where the caller has not set them."""
    ours = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
    # What lies in the caller's folder shadows no module, there and in processes that vLLM starts.
    fixed = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONSAFEPATH": "1"}
    return {**QUIET, **ON_CPU, **ours, **fixed}


def _data(job: Job, file: Path) -> dict[str, Any]:
    return {
        "model_type": job.model_type,
        "config": None if job.config is None else str(job.config.save(file)),
        "engine": {"model": job.folder, **job.engine},
        "sampling": {"temperature": 0.0, **job.sampling},
        "prompts": [vars(prompt) for prompt in job.prompts],
        "runs": list(job.runs),
        "refusals": list(job.refusals),
    }


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "prunetune" in line and "Error: " in line]
    return " ".join(told[-1:] or lines[-_LAST_LINES:]) or "without a word"
