"""An OpenAI-compatible server of a pruned model.

The server is transformers' own (``transformers.cli.serving``), its handlers and routes untouched:
what is ours is that its one model is here already, with a config applied. Requests are generated
one after the other; its continuous batching pages the KV cache of a model that prunes nothing.
"""

import inspect
import socket
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.budget import stated_retention
from prunetune.config import PruningConfig
from prunetune.deploy.request_log import RequestLog
from prunetune.errors import ConfigError
from prunetune.runtime.apply import Handle, apply

if TYPE_CHECKING:
    from prunetune.models import LoadedModel

_SERVING = "transformers.cli.serving"
_HANDLERS = {
    "chat_handler": ("chat_completion", "ChatCompletionHandler"),
    "completion_handler": ("completion", "CompletionHandler"),
    "response_handler": ("response", "ResponseHandler"),
    "systemone_handler": ("systemone", "SystemOneHandler"),
    "transcription_handler": ("transcription", "TranscriptionHandler"),
}
"""What ``build_server`` takes, by release some or all of it."""


def pruned_app(
    loaded: "LoadedModel", config: PruningConfig, name: str, *, log: Path | None = None
) -> "tuple[Any, Handle]":
    """Return an ASGI application that serves a model with a config applied.

    Beside transformers' routes (``/v1/chat/completions``, ``/v1/responses``, ``/v1/completions``,
    ``/v1/models``, ``/health``) it has ``GET /prunetune``: the config, and what it did in the last
    forward with images.

    Args:
        loaded: The model and its processor.
        config: Applied until the handle is removed.
        name: Of the model, in requests and answers.
        log: Where bodies of chat requests with pictures are kept, a line each.

    Returns:
        The application, and the handle of the config.

    Raises:
        ConfigError: What the server needs is not installed, or the config does not fit.
    """
    require()
    server = _module("server")
    manager = _manager(loaded, name)
    state = _module("utils").GenerationState()
    wanted = inspect.signature(server.build_server).parameters
    handlers = {
        key: getattr(_module(module), kind)(model_manager=manager, generation_state=state)
        for key, (module, kind) in _HANDLERS.items()
        if key in wanted
    }
    handle = apply(loaded.model, config, processor=loaded.processor)
    app = server.build_server(manager, generation_state=state, **handlers)
    app.get("/prunetune")(_Status(config, handle).read)
    if log is not None:
        app.add_middleware(RequestLog, path=log)
    return app, handle


class _Status:
    """What ``GET /prunetune`` answers."""

    def __init__(self, config: PruningConfig, handle: Handle) -> None:
        self._handle = handle
        self._told = {
            "digest": config.digest(),
            "mean_retention": stated_retention(config),
            "config": config.model_dump(mode="json"),
        }

    def read(self) -> dict[str, Any]:
        trace = self._handle.trace
        stages = trace[-1].stages if trace else []
        last = [{"layer": s.layer, "before": s.before, "after": s.after} for s in stages]
        return {**self._told, "last": last or None}


def _manager(loaded: "LoadedModel", name: str) -> Any:
    """Return a model manager of transformers that has one model and neither loads nor lets go."""
    base: Any = _module("model_manager").ModelManager

    class OneModel(base):  # type: ignore[misc]
        def load_model_and_processor(
            self, model_id_and_revision: str, *args: Any, **kwargs: Any
        ) -> tuple[Any, Any]:
            asked = model_id_and_revision.partition("@")[0]
            if asked != name:
                raise ValueError(f"this server has the model {name!r} only; requested {asked!r}")
            return loaded.model, loaded.processor

        def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
            return [{"id": name, "object": "model", "created": started, "owned_by": "prunetune"}]

        def shutdown(self) -> None:
            """Keep the model: it was not loaded here."""

    started = int(time.time())
    manager = OneModel()
    manager.force_model = name
    return manager


def require() -> None:
    """Refuse to serve where what it takes is not installed.

    Raises:
        ConfigError: It is not.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ConfigError(
            "serve needs fastapi, uvicorn and openai, which are not all installed: "
            "pip install 'prunetune[serve]'"
        )


def _module(name: str) -> Any:
    return import_module(f"{_SERVING}.{name}")


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
        import uvicorn

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise ConfigError(
                f"cannot listen on {host} port {port}: {reason}; give another --port (0: any free "
                "one), or an address of this machine"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

    def serve(self) -> None:
        """Answer requests until ``stop`` is called, SIGINT or SIGTERM."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    def close(self) -> None:
        """Stop listening without having served."""
        self._socket.close()

    def stop(self) -> None:
        """End ``serve``; from another thread."""
        self._server.should_exit = True
