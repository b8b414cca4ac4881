"""An OpenAI-compatible server of a pruned model.

The server is transformers' own (``transformers.cli.serving``): what is ours is that its one model
is here already, with a config applied, and what stands before it (``front``): nothing reaches it
that was not bounded and checked. Requests are generated one after the other; its continuous
batching pages the KV cache of a model that prunes nothing.
"""

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.budget import stated_retention
from prunetune.config import PruningConfig
from prunetune.deploy.front.limits import Limits
from prunetune.deploy.request_log import RequestLog
from prunetune.errors import ConfigError
from prunetune.runtime.apply import Handle, apply

if TYPE_CHECKING:
    from prunetune.models import LoadedModel

_PICTURE_WORDS = ("image", "video", "vision", "audio", "boi_", "eoi_")
_LIMITS = Limits()


def pruned_app(
    loaded: "LoadedModel",
    config: PruningConfig,
    name: str,
    *,
    log: Path | None = None,
    limits: Limits = _LIMITS,
) -> "tuple[Any, Handle]":
    """Return an ASGI application that serves a model with a config applied.

    Its routes: ``/v1/chat/completions``, ``/v1/responses``, ``/v1/completions``, ``/v1/models``
    and ``/v1/models/NAME``; ``/health``, ``/metrics``; and ``GET /prunetune``: the config, and what
    it did in the last forward with images.

    Args:
        loaded: The model and its processor.
        config: Applied until the handle is removed.
        name: Of the model, in requests and answers.
        log: Where bodies of chat requests with pictures are kept, a line each.
        limits: What a request may take.

    Returns:
        The application, and the handle of the config.

    Raises:
        ConfigError: What the server needs is not installed, or the config does not fit.
    """
    require()
    from prunetune.deploy.front.behind import Behind
    from prunetune.deploy.front.front import Front
    from prunetune.deploy.front.requests import Checker

    behind = Behind(loaded, name)
    if log is not None:
        behind.app.add_middleware(RequestLog, path=log)
    vocabulary = getattr(loaded.model.config.get_text_config(), "vocab_size", None)
    checker = Checker(limits, name, placeholders(loaded), vocabulary)
    handle = apply(loaded.model, config, processor=loaded.processor)
    status = _Status(config, handle)
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "prunetune"}
    pages = {
        "/prunetune": status.read,
        "/v1/models": lambda: {"object": "list", "data": [model]},
        f"/v1/models/{name}": lambda: model,
    }
    return Front(behind, checker, limits, pages, status.visual), handle


class _Status:
    """What ``GET /prunetune`` answers."""

    def __init__(self, config: PruningConfig, handle: Handle) -> None:
        self._handle = handle
        self._told = {
            "digest": config.digest(),
            "mean_retention": stated_retention(config),
            "config": config.model_dump(mode="json"),
        }
        self._seen: tuple[Any, tuple[int, int]] | None = None

    def read(self) -> dict[str, Any]:
        trace = self._handle.trace
        stages = trace[-1].stages if trace else []
        last = [{"layer": s.layer, "before": s.before, "after": s.after} for s in stages]
        return {**self._told, "last": last or None}

    def visual(self) -> tuple[int, int] | None:
        """Return the last forward's visual tokens before and after; the same object if it is."""
        trace = self._handle.trace
        if not trace:
            return None
        if self._seen is None or self._seen[0] is not trace[-1]:
            stages = trace[-1].stages
            before = sum(len(slots) for slots in trace[-1].image_slots)
            self._seen = trace[-1], (before, sum(stages[-1].after) if stages else before)
        return self._seen[1]


def placeholders(loaded: "LoadedModel") -> list[str]:
    """Return the texts that a model's processor takes for a picture or a video."""
    found: set[str] = set()
    for holder in (loaded.processor, getattr(loaded.processor, "tokenizer", None)):
        for key in dir(holder) if holder is not None else ():
            if key.endswith("_token") and any(word in key for word in _PICTURE_WORDS):
                value = getattr(holder, key, None)
                if isinstance(value, str) or hasattr(value, "content"):
                    found.add(str(getattr(value, "content", value)))
    return sorted(found - {""})


def require() -> None:
    """Refuse to serve where what it takes is not installed.

    Raises:
        ConfigError: It is not.
    """
    from importlib.util import find_spec

    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available() or find_spec("prometheus_client") is None:
        raise ConfigError(
            "serve needs fastapi, uvicorn, openai and prometheus-client, which are not all "
            "installed: pip install 'prunetune[serve]'"
        )


class Server:
    """Listens from the moment it is made, and answers while ``serve`` runs.

    Args:
        app: From ``pruned_app``.
        host: Address to listen on.
        port: 0 for any free one.

    Attributes:
        url: Where it listens.

    Raises:
        ConfigError: The address cannot be listened on.
    """

    def __init__(self, app: Any, host: str = "127.0.0.1", port: int = 8000) -> None:
        from prunetune.deploy.front.listener import Uvicorn

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except (OSError, OverflowError, UnicodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise ConfigError(
                f"cannot listen on {host} port {port}: {reason}; give another --port (0: any free "
                "one), or an address of this machine"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        if app is not None:
            app.listens_on(host)
        self._server = Uvicorn(app)

    def serve(self) -> int | None:
        """Answer requests until ``stop`` is called, SIGINT or SIGTERM; return the signal."""
        with self._socket:
            self._server.run(sockets=[self._socket])
        return self._server.ended_by

    def close(self) -> None:
        """Stop listening without having served."""
        self._socket.close()

    def stop(self) -> None:
        """End ``serve``; from another thread."""
        self._server.should_exit = True
