"""One further worker: the process that a crew starts.

Nothing imports this file: it is run, and imports what started it.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from prunetune.interrupts import check, heeded
from prunetune.secrets import redact, remember
from prunetune.study.workers.workers import FINISH, READY, STOP_SECONDS


def _obey(orders: IO[str]) -> threading.Event:
    """Watch for ``finish`` and for the end of the input; return what tells of either."""
    stopped = threading.Event()
    main = threading.main_thread().ident or 0

    def watch() -> None:
        for line in orders:
            if line.strip() == FINISH:
                stopped.set()
        stopped.set()
        # Not os.kill: only the main thread's own signal ends a sleep in it.
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(STOP_SECONDS)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()
    return stopped


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> int:
    """Run one worker; its order is the first line of stdin."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # The parent has said the same.
    logging.getLogger("prunetune.study.prepare").setLevel(logging.ERROR)
    try:
        # A shell's background jobs inherit that SIGINT is ignored.
        with heeded(signal.SIGINT, signal.SIGTERM, ignored_too=True):
            order = json.loads(sys.stdin.readline())
            remember([order["prepare"].get("storage") or ""])
            stopped = _obey(sys.stdin)
            join(order, stopped.is_set, lambda: _tell(READY))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        text = " ".join(str(error).split())
        _tell(redact(f"{type(error).__name__}: {text}"))
        return 1
    return 0


def join(order: Mapping[str, Any], stopped: Callable[[], bool], ready: Callable[[], None]) -> None:
    """Work on the study of another process, as ``crew`` ordered; ``ready`` is called before.

    Args:
        order: What ``crew`` made, with the ``worker``'s number and its ``threads``.
        stopped: Tells that no further trial is to be started.
        ready: Called before the first trial.
    """
    # First, and before anything heavy is loaded: an order that is wrong is told at once.
    from prunetune.spec import StudySpec

    spec, options = StudySpec.parse(order["spec"]), dict(order["prepare"])
    import torch

    from prunetune.measure.evaluator import Evaluator
    from prunetune.models.embedded import is_embedded
    from prunetune.study.clock import Clock
    from prunetune.study.prepare import prepare
    from prunetune.study.study import run_trials
    from prunetune.study.workers.crew import Cache

    torch.set_num_threads(order["threads"])
    devices = torch.cuda.device_count()
    spread = options.get("device_map") is not None
    if not (spread or options.get("device") or is_embedded(spec.model)) and devices > 1:
        options["device"] = f"cuda:{order['worker'] % devices}"
    prepared = prepare(spec, **options)
    cache = Cache(**order["cache"])
    evaluator = Evaluator(
        prepared.loaded,
        prepared.calibration,
        deepest=prepared.deepest,
        batch_size=order["batch_size"],
        cache=cache.path(),
        cache_limit=cache.limit,
        in_memory=cache.in_memory,
        own=prepared.spec.own_tokens,
        match=prepared.spec.match,
        levels=prepared.levels,
        progress=lambda done: check(),
    )
    if stopped():
        return
    ready()
    run_trials(
        prepared.spec,
        evaluator,
        out=prepared.out,
        storage=options["storage"],
        study_name=options["study_name"],
        worker=order["worker"],
        records=False,
        stopped=stopped,
        clock=Clock(**order["clock"]) if "clock" in order else None,
    )


if __name__ == "__main__":
    sys.exit(main())
