"""How far a verb is: bars on a terminal, lines in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prunetune.cli.progress.bars import bars
from prunetune.cli.progress.lines import lines
from prunetune.cli.progress.shows import Show

EVERY = 30.0
"""Seconds between two lines in a log."""


@contextmanager
def progress(phases: bool = False) -> Iterator[Show]:
    """Show on stderr how far the block is.

    Args:
        phases: In a log, say each phase that begins, too.
    """
    with bars() if sys.stderr.isatty() else lines(phases, EVERY) as show:
        yield show
