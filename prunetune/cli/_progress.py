"""How far a verb is: bars on a terminal, lines in a log."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prunetune.cli._output import note

EVERY = 30.0
"""Seconds between two lines in a log."""

Show = Callable[..., None]
"""Takes (name, done, total=None, detail=""); each new name begins a new phase."""


@contextmanager
def progress(phases: bool = False) -> Iterator[Show]:
    """Show on stderr how far the block is.

    On a terminal each phase has a bar; what has ended shows how long it took. Elsewhere a line
    comes every 30 seconds, from a thread: a phase that says nothing for an hour is seen to run.

    Args:
        phases: In a log, say each phase that begins, too.
    """
    if sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        with _lines(phases, EVERY) as show:
            yield show


@contextmanager
def _bars() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}

    def show(name: str, done: int, total: int | None = None, detail: str = "") -> None:
        if name not in tasks:
            for task in tasks.values():
                # The one that runs is the last one; others stand still.
                bar.stop_task(task)
            tasks[name] = bar.add_task(name, total=total, count="", detail="")
        count = str(done) if total is None else f"{done}/{total}"
        bar.update(tasks[name], completed=done, total=total, count=count, detail=detail)

    with bar:
        yield show


@contextmanager
def _lines(phases: bool, every: float) -> Iterator[Show]:
    begun = time.monotonic()
    now: list[Any] = []
    ended = threading.Event()

    def say() -> None:
        name, done, total, detail = now
        count = f" {done}" if total is None else f" {done}/{total}"
        more = f", {detail}" if detail else ""
        note(f"{name}:{count if done or total else ''}{more} ({time.monotonic() - begun:.0f} s)")

    def show(name: str, done: int, total: int | None = None, detail: str = "") -> None:
        new = not now or now[0] != name
        now[:] = [name, done, total, detail]
        if new and phases:
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
