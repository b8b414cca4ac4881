"""What the process is set to before a verb runs: logs, threads, chatter."""

import logging
import math
import os
import sys
import warnings
from pathlib import Path

from prunetune.cli._output import printable, shortened

MOST_THREADS = 1024
_CHATTY = (
    "alembic",
    "datasets",
    "filelock",
    "httpx",
    "huggingface_hub",
    "optuna",
    # Where it is installed, transformers imports it, and it warns of every GPU library it lacks.
    "torchao",
    "torch.utils._pytree",
    "transformers",
)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = shortened(printable(" ".join(record.getMessage().split())))
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def set_logging(verbose: bool) -> None:
    """Send logs to stderr; unless ``verbose``, keep the libraries beneath silent."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logger = logging.getLogger("prunetune")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def set_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says how; before torch.

    By default they spin: with another busy process on the machine a search of the embedded model on
    two threads then takes several times as long.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def quieten_optuna() -> None:
    """Keep Optuna's line a trial out of stderr, unless ``--verbose``; importing it sets a level."""
    import optuna

    if logging.getLogger("prunetune").level > logging.INFO:
        optuna.logging.set_verbosity(optuna.logging.ERROR)


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` CPU threads, by default one a physical core; return how many."""
    import torch

    from prunetune.errors import ConfigError

    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"--threads: received {threads:g}, allowed 1 to {MOST_THREADS}")
    if threads is None:
        if os.environ.get("OMP_NUM_THREADS"):
            return torch.get_num_threads()
        threads = physical_cores()
    torch.set_num_threads(threads)
    return threads


def physical_cores() -> int:
    """Return how many physical cores this process may use: affinity and container quota count."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on this platform
        allowed = set(range(os.cpu_count() or 1))
    cores = len({_core(cpu) for cpu in allowed})
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or no quota ("max")
        pass
    return max(1, cores)


def _core(cpu: int) -> str:
    """Return what the hardware threads of one core have in common."""
    try:
        path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        return Path(path).read_text().strip()
    except OSError:
        return str(cpu)
