"""Whether a request is meant for this server: its Host header, against DNS rebinding.

A page in a browser can make its own name lead to this machine, and then read answers as its own.
Its name stays in the header, though: an address cannot be such a name.
"""

import ipaddress
import socket
from collections.abc import Iterable

_ALWAYS = ("localhost",)


class Hosts:
    """Names and addresses that a request may be addressed to.

    Args:
        listening: What the server listens on.
        more: Further names; ``*`` allows any.
    """

    def __init__(self, listening: str, more: Iterable[str] = ()) -> None:
        own = (listening, socket.gethostname())
        self._names = {name.strip().rstrip(".").lower() for name in (*_ALWAYS, *own, *more)}

    def allow(self, header: str | None) -> bool:
        """Tell whether a Host header names this server; an address always does."""
        if "*" in self._names:
            return True
        name = _name(header or "")
        return name in self._names or _is_address(name)


def _name(header: str) -> str:
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    name = header.rpartition(":")[0] if header.count(":") == 1 else header
    return name.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
