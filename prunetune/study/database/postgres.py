"""Connections to PostgreSQL that do not wait for ever.

A server that is stopped, or behind a network that drops everything, keeps its connections open and
answers nothing. Its own ``statement_timeout`` cannot run out then, and keepalives are answered by
its kernel: whoever asked has to look at the clock.
"""

import time
from collections.abc import Callable, Generator
from typing import Any

CONNECT_SECONDS = 10
ANSWER_SECONDS = 20.0


def connector(url: str) -> Callable[[], Any]:
    """Return what opens connections to a database; it fails where psycopg is not installed."""
    from psycopg import Connection, OperationalError
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    words, options = parsed.get_dialect()().create_connect_args(parsed)

    class Bounded(Connection[Any]):
        """A connection whose every statement is answered within ``ANSWER_SECONDS``, or fails."""

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().wait(_bounded(gen, self._too_late), *args, **kwargs)
            except KeyboardInterrupt:
                # Not cancelled in words: the server might not hear them.
                self.pgconn.finish()
                raise

        def _too_late(self) -> None:
            self.pgconn.finish()
            raise OperationalError(f"the server has not answered for {ANSWER_SECONDS:g} seconds")

    def connect() -> Any:
        bounds = {"connect_timeout": CONNECT_SECONDS, **options}
        return Bounded.connect(*words, **bounds)

    return connect


def _bounded(
    gen: Generator[Any, Any, Any], too_late: Callable[[], None]
) -> Generator[Any, Any, Any]:
    """Pass on what a generator of psycopg waits for, which resumes it ten times a second."""
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > deadline:
                gen.close()
                too_late()
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value
