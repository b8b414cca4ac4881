"""Lines in a log: where a phase begins, and every now and then."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prunetune.cli._output import note
from prunetune.cli.progress.shows import Show


@contextmanager
def lines(phases: bool, every: float) -> Iterator[Show]:
    """Print lines while the block runs.

    Args:
        phases: Whether a phase that begins is said, too; the first one when it ends.
        every: Seconds between two lines; from a thread, so that silence is no sign of an end.
    """
    begun = time.monotonic()
    now: list[Any] = []
    seen: set[str] = set()
    ended = threading.Event()

    def say() -> None:
        name, done, total, detail = now
        count = f" {done}" if total is None else f" {done}/{total}"
        more = f", {detail}" if detail else ""
        note(f"{name}:{count if done or total else ''}{more} ({time.monotonic() - begun:.0f} s)")

    def show(name: str, done: int, total: int | None = None, detail: str = "") -> None:
        before = now[0] if now else None
        if phases and before not in (None, name) and len(seen) == 1:
            # Not before: a start that is refused is one line, the reason.
            say()
        now[:] = [name, done, total, detail]
        seen.add(name)
        if phases and before not in (None, name):
            say()

    def watch() -> None:
        while not ended.wait(every):
            if now:
                say()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()
