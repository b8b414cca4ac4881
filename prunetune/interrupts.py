"""Ctrl-C and SIGTERM that cannot be lost.

A handler's KeyboardInterrupt is raised wherever the interpreter happens to be. In a finaliser, a
weak reference's callback or somebody's bare ``except`` it disappears, and the search would go on to
its end (seen in CI). So the handler also leaves a mark, which every step of a search looks at.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Mark:
    # Not an Event: its lock could be held by what the signal interrupts.
    left = False


def check() -> None:
    """Raise KeyboardInterrupt if an interrupt came, also one whose exception was swallowed."""
    if _Mark.left:
        raise KeyboardInterrupt


def _quietly(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """Return a hook for exceptions that nobody can catch, which leaves out our own."""

    def said(unraisable: Any) -> None:
        if not (_Mark.left and unraisable.exc_type is KeyboardInterrupt):
            hook(unraisable)

    return said


def _handle(number: int, frame: object) -> None:
    _Mark.left = True
    raise KeyboardInterrupt


@contextmanager
def heeded(*numbers: signal.Signals, ignored_too: bool = False) -> Iterator[None]:
    """End the block with KeyboardInterrupt if one of the signals arrives, wherever it hits.

    Handlers that somebody else has set stay. Elsewhere than in the main thread nothing happens:
    Python sets handlers only there.

    Args:
        numbers: The signals.
        ignored_too: Heed signals that the process was started to ignore.
    """
    usual: list[Any] = [signal.SIG_DFL, signal.default_int_handler]
    usual += [signal.SIG_IGN] if ignored_too else []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: h for n in numbers if (h := signal.getsignal(n)) in usual}
    hook = sys.unraisablehook
    try:
        for number in before:
            signal.signal(number, _handle)
        if before:
            # Where the exception disappears Python prints a traceback; the mark is what counts.
            sys.unraisablehook = _quietly(hook)
        yield
        check()
    except Exception as error:
        if _Mark.left:
            # Whatever was made of the interrupt on its way here.
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            sys.unraisablehook = hook
            _Mark.left = False
