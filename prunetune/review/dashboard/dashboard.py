"""Optuna dashboard over a study database, with notes, figures, pictures and files wired."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from prunetune.errors import ConfigError, PrunetuneError
from prunetune.review.dashboard.artifacts import ArtifactFolder
from prunetune.review.dashboard.importance import App, OneImportance
from prunetune.review.dashboard.publish import Publisher
from prunetune.secrets import redact

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SECONDS = 5.0
# It may be loading a model, which nobody waits for.
_PATIENCE = 1.0
# A file that somebody put among the artifacts must not act in the page's name.
_FRAMES = "frame-ancestors 'none'"
_SANDBOX = (
    "sandbox; frame-ancestors 'self'; default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"
)
# Optuna dashboard sets an attribute, such as a trial's config, on one line however long it is: a
# trial's page was 5,600 pixels wide.
_STYLE = b"""<style>
.MuiBox-root > p { white-space: normal; overflow-wrap: anywhere }
.MuiCard-root td, .MuiCard-root th { padding: 2px 12px 2px 0; text-align: left }
.MuiCard-root img { max-width: 100% }
</style>"""
# The page is not as long as its file, nor is it the file of that tag and date.
_DROPPED = {
    True: ("access-control-allow-origin", "content-length", "etag", "last-modified"),
    False: ("access-control-allow-origin",),
}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # WSGIServer's asks the name service who this machine is, which may take seconds.
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Six(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class Dashboard:
    """A web server of Optuna dashboard, and a thread that keeps the studies' notes up to date.

    The notes are written here and not by each worker of a search: whoever looks sees them, also
    of studies that were searched elsewhere or before, and a search spends no time on them.

    Args:
        storage: The study database.
        store: Where the artifacts lie.
        host: Address to listen on.
        port: 0 for any free one.
        prepare: Called once, in the thread, with every study's publisher before it is used: to
            load what pictures need.

    Raises:
        ConfigError: The address cannot be listened on.
    """

    def __init__(
        self,
        storage: BaseStorage,
        store: ArtifactFolder,
        *,
        host: str = LOOPBACK[0],
        port: int = 0,
        prepare: Callable[[Publisher], None] = lambda publisher: None,
    ) -> None:
        self._storage, self._store, self._prepare = storage, store, prepare
        self._stop = threading.Event()
        self._publishers: dict[str, Publisher] = {}
        self._refreshing = threading.Lock()
        inner = OneImportance(wsgi(storage, artifact_store=store), storage)
        app = guarded(inner, local=host in LOOPBACK)
        try:
            self._server = make_server(
                host, port, app, _Six if ":" in host else _Server, handler_class=_Quiet
            )
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            advice = (
                "leave out --port for a free one" if port else "give an address of this machine"
            )
            raise ConfigError(
                f"cannot listen on {host}{f' port {port}' if port else ''}: {reason}; {advice}"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/dashboard"

    def refresh(self) -> None:
        """Write the notes of all studies that changed, once; failures are logged."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        try:
            names = optuna.get_all_study_names(self._storage)
        except Exception as error:
            logger.warning("the study database does not answer: %s", redact(str(error)))
            return
        for name in names:
            if self._stop.is_set():
                return
            if name not in self._publishers and not self._open(name):
                continue
            self._publishers[name].refresh()

    def _open(self, name: str) -> bool:
        try:
            study = optuna.load_study(study_name=name, storage=self._storage)
            if "spec" not in study.user_attrs:
                return False  # not prunetune's: shown as it is
            publisher = Publisher(study, self._store)
            self._prepare(publisher)
        except Exception as error:
            logger.warning("study %r is shown as it is: %s", name, redact(str(error)))
            return False
        self._publishers[name] = publisher
        return True

    def serve(self) -> None:
        """Answer requests until ``stop`` is called, or an exception such as KeyboardInterrupt."""
        with self._watching():
            self._server.serve_forever(poll_interval=0.2)

    def stop(self) -> None:
        """End ``serve``; from a signal handler or another thread."""
        self._stop.set()
        threading.Thread(target=self._server.shutdown, daemon=True).start()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, name="notes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._server.server_close()
            thread.join(timeout=_PATIENCE)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.refresh()
            self._stop.wait(_SECONDS)


def guarded(app: App, *, local: bool) -> App:
    """Return the application with headers that keep strangers out, and pages that can be read.

    Args:
        app: Optuna dashboard's, which has no log-in and whose pages can delete studies.
        local: Answer only requests that name this machine: a page from elsewhere whose name was
            pointed at the loopback (DNS rebinding) is refused.
    """

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if local and _host(environ.get("HTTP_HOST", "")) not in LOOPBACK:
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"This dashboard answers requests to 127.0.0.1 and localhost only.\n"]
        path = str(environ.get("PATH_INFO", ""))
        page = path.startswith("/dashboard")
        if page:
            environ = {k: v for k, v in environ.items() if not k.startswith("HTTP_IF_")}

        def begin(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            kept = [(k, v) for k, v in headers if k.lower() not in _DROPPED[page]]
            kept.append(("X-Content-Type-Options", "nosniff"))
            # Inside another site's frame a click could be led onto a button that deletes.
            sandboxed = path.startswith("/artifacts/")
            kept.append(("Content-Security-Policy", _SANDBOX if sandboxed else _FRAMES))
            kept.append(("X-Frame-Options", "SAMEORIGIN" if sandboxed else "DENY"))
            return start(status, kept, *more)

        found = app(environ, begin)
        return [b"".join(found).replace(b"</head>", _STYLE + b"</head>")] if page else found

    return answer


def _host(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def artifact_folder(folder: Path | None, given: Path | None) -> ArtifactFolder:
    """Return where a study's files lie.

    Args:
        folder: The run's folder; None for a storage URL.
        given: What the user names.

    Raises:
        ConfigError: Neither is known, or it is no folder.
    """
    from prunetune.review.dashboard.artifacts import FOLDER

    place = given or (folder / FOLDER if folder is not None else None)
    if place is None:
        raise ConfigError(
            "--artifacts is missing: a storage URL does not say where the pictures lie; name a "
            "folder, such as --artifacts artifacts"
        )
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--artifacts: received {str(place)!r}, which is no folder")
    return ArtifactFolder(place.resolve())


def newest_run(root: Path) -> Path:
    """Return the run's folder under ``root`` whose study was written last.

    Raises:
        PrunetuneError: There is none.
    """
    from prunetune.study.database.urls import DATABASE

    found = sorted(root.glob(f"*/{DATABASE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PrunetuneError(
            f"STUDY is missing, and {root}/ holds no study; give a folder that `prunetune search` "
            "wrote, its study.db, or a storage URL"
        )
    return found[-1].parent
