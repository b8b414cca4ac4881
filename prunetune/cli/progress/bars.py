"""Bars on a terminal, one a phase."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prunetune.cli.progress.shows import Show


@contextmanager
def bars() -> Iterator[Show]:
    """Show bars while the block runs; of a phase that has ended the bar stands still."""
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
