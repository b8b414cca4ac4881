"""Fetches a picture from the network: bounded in time, bytes, redirects and addresses."""

import http.client
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from prunetune.deploy.front.addresses import Forbidden, resolve
from prunetune.deploy.front.limits import Limits
from prunetune.deploy.front.replies import Refused

_PART = 64 << 10
_MOVED = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}


def fetch(url: str, limits: Limits) -> bytes:
    """Return what a URL leads to.

    It blocks, for ``limits.picture_seconds`` at most and the time that a name takes to be looked
    up. Proxies of the environment are not used: they would look names up again.

    Raises:
        Refused: It may not be fetched, or cannot be within the limits.
    """
    deadline = time.monotonic() + limits.picture_seconds
    try:
        for _ in range(limits.redirects + 1):
            found, moved = _get(_split(url), deadline, limits)
            if moved is None:
                return found
            url = urljoin(url, moved)
    except Forbidden as error:
        raise Refused(
            400,
            f"the picture's host is at {error}, on this machine or in a private or reserved "
            "network; pictures are not fetched from there unless the server has "
            "--allow-private-hosts: send it as data:image/...;base64,",
            "image_url",
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= deadline
        reason = f"not here after {limits.picture_seconds:g} seconds" if late else _reason(error)
        raise Refused(400, f"the picture cannot be fetched: {reason}", "image_url") from None
    raise Refused(400, f"the picture is redirected more than {limits.redirects} times", "image_url")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("it is redirected to what is no http address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("its address holds a user's name or password")
    return parts


def _get(parts: SplitResult, deadline: float, limits: Limits) -> tuple[bytes, str | None]:
    """Return the content, or where it has moved to."""
    host = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    address = resolve(host, port, private=limits.private_hosts)
    connection = _Pinned(host, port, address, parts.scheme == "https", deadline)
    # Whatever the host does, at the deadline the connection is cut: a time-out alone would begin
    # anew with every byte.
    cut = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    cut.daemon = True
    cut.start()
    try:
        path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        connection.request("GET", path, headers={"User-Agent": "prunetune", "Accept": "image/*"})
        answer = connection.getresponse()
        if answer.status in _MOVED and answer.headers.get("Location"):
            return b"", answer.headers["Location"]
        if answer.status != 200:
            raise OSError(f"its host answers {answer.status}")
        return _content(answer, deadline, limits.picture), None
    finally:
        cut.cancel()
        connection.close()


def _content(answer: http.client.HTTPResponse, deadline: float, most: int) -> bytes:
    found = bytearray()
    while part := answer.read1(_PART):
        found += part
        if len(found) > most:
            raise OSError(f"larger than {most >> 20} MiB")
        if time.monotonic() >= deadline:
            raise TimeoutError
    return bytes(found)


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was looked up and allowed before."""

    def __init__(self, host: str, port: int, address: str, secure: bool, deadline: float) -> None:
        super().__init__(host, port, timeout=max(0.1, deadline - time.monotonic()))
        self._address, self._secure, self._cut = address, secure, False
        if secure:
            self.default_port = 443

    def connect(self) -> None:
        """Connect to the address; the certificate has to be the name's."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
        if self._cut:
            raise TimeoutError

    def cut(self) -> None:
        """End whatever waits for this connection; from another thread."""
        self._cut = True
        try:
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
