"""What the workers of one command share: the cache of references, and their orders."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.spec import StudySpec
from prunetune.study.prepare import Prepared, prepare

if TYPE_CHECKING:
    from prunetune.study.workers.workers import Crew

CACHE_BYTES = 20 << 30
_SMALL = 512 << 20


@dataclass(frozen=True)
class Cache:
    """Where the unpruned references are kept between searches and shared by workers.

    Attributes:
        folder: None for ``$PRUNETUNE_CACHE``, by default ``~/.cache/prunetune/references``.
        limit: Bytes that all references in the folder may take.
        on_disk: False keeps them in memory.
    """

    folder: str | None = None
    limit: int = CACHE_BYTES
    on_disk: bool = True

    @property
    def in_memory(self) -> int:
        """Bytes of references that are not worth a file: they take seconds to compute.

        None where a folder is named: whoever names one wants them there.
        """
        return 0 if self.folder else _SMALL

    def path(self) -> Path | None:
        """Return the folder for references; None for memory."""
        named = self.folder or os.environ.get("PRUNETUNE_CACHE")
        if not self.on_disk:
            return None
        if named:
            return Path(named)
        from prunetune.measure.store import default_cache

        return default_cache()


@dataclass(frozen=True)
class Workers:
    """The worker processes of a search on this machine.

    Attributes:
        count: This process included.
        threads: CPU threads of each; None for an equal share.
    """

    count: int = 1
    threads: int | None = None


def crew(
    prepared: Prepared,
    options: Mapping[str, Any],
    batch_size: int,
    cache: Cache,
    workers: Workers,
) -> "Crew":
    """Return the workers beside this process; they start when the study exists."""
    from prunetune.study.workers.workers import Crew

    plain = {
        name: str(value).removeprefix("torch.") if name in ("dtype", "device") and value else value
        for name, value in options.items()
    }
    order = {
        "spec": prepared.spec.model_dump(mode="json"),
        "prepare": {**plain, "out": str(prepared.out)},
        "batch_size": batch_size,
        "cache": asdict(cache),
    }
    threads = workers.threads or max(1, (os.cpu_count() or 1) // workers.count)
    return Crew(workers.count - 1, order, threads)


def join(order: Mapping[str, Any], stopped: Callable[[], bool], ready: Callable[[], None]) -> None:
    """Work on the study of another process, as ``crew`` ordered; ``ready`` is called before.

    Args:
        order: What ``crew`` made, with the ``worker``'s number and its ``threads``.
        stopped: Tells that no further trial is to be started.
        ready: Called before the first trial.
    """
    import torch

    from prunetune.interrupts import check
    from prunetune.measure.evaluator import Evaluator
    from prunetune.study.study import run_trials

    torch.set_num_threads(order["threads"])
    spec, options = StudySpec.parse(order["spec"]), dict(order["prepare"])
    devices = torch.cuda.device_count()
    spread = options.get("device_map") is not None
    if not (spread or options.get("device") or spec.model == "tiny") and devices > 1:
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
    )
