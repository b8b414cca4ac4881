"""Listens on a socket, and ends within seconds whatever is going on."""

import asyncio
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
_MOST_CONNECTIONS = 256
_GRACE_SECONDS, _LAST_SECONDS = 2, 5.0


class BoundedProtocol(H11Protocol):  # type: ignore[misc]
    """A connection that has to ask something soon; one too many is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Watch a new connection."""
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.close()
            return
        self._idle: Any = None
        self._watch()

    def _watch(self) -> None:
        self._idle = self.loop.call_later(HEADER_SECONDS, self._look, self.cycle)

    def _look(self, before: Any) -> None:
        """Close a connection that has not asked anything since it was looked at."""
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self.cycle is before:
            self.transport.close()
        elif not self.transport.is_closing():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch it no longer."""
        if getattr(self, "_idle", None) is not None:
            self._idle.cancel()
        super().connection_lost(exc)


class Uvicorn(uvicorn.Server):  # type: ignore[misc]
    """A server that a signal ends within ``_LAST_SECONDS``.

    Attributes:
        ended_by: The signal; None where there was none.
    """

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._app = app
        self.ended_by: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        if self.ended_by is not None:
            self.force_exit = True
        self.ended_by = sig
        self.should_exit = True
        # A forward that takes minutes, or a name that is looked up, heeds nothing.
        last = threading.Timer(_LAST_SECONDS, leave, [sig])
        last.daemon = True
        last.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the application first: what it waits for would keep connections open."""
        stop = getattr(self._app, "stop", None)
        if stop is not None:
            stop()
        await super().shutdown(sockets)


def status_of(sig: int | None) -> int:
    """Return the exit status of a server that a signal ended: as asked, or by Ctrl-C."""
    return 130 if sig == signal.SIGINT else 0


def leave(sig: int | None) -> None:
    """End the process now, without waiting for any thread."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status_of(sig))
