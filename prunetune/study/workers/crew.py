"""What the workers of one command share: the cache of references, and their orders."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.study.clock import Clock
from prunetune.study.prepare import Prepared

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
    clock: Clock | None = None,
) -> "Crew":
    """Return the workers beside this process; they start when the study exists."""
    from prunetune.study.workers.workers import Crew

    plain = {
        name: str(value).removeprefix("torch.") if name in ("dtype", "device") and value else value
        for name, value in options.items()
    }
    order: dict[str, Any] = {
        "spec": prepared.spec.model_dump(mode="json"),
        "prepare": {**plain, "out": str(prepared.out)},
        "batch_size": batch_size,
        "cache": asdict(cache),
    }
    clock = clock or Clock()
    if clock.seconds is not None:
        # Their trials end when ours do.
        order["clock"] = {"seconds": clock.seconds, "begun": clock.begun, "kept": clock.kept}
    threads = workers.threads or max(1, (os.cpu_count() or 1) // workers.count)
    return Crew(workers.count - 1, order, threads, clock)
