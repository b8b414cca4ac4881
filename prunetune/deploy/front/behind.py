"""transformers' server, with one model that is here already, in an event loop of its own.

Its handlers decode pictures and tokenise where they are called. In a thread of their own they keep
nobody from being answered by the loop before them.
"""

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunetune.deploy.front.replies import Message, Refused
from prunetune.deploy.front.turns import Turn

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

App = Callable[..., Awaitable[None]]


class Behind:
    """The application behind, called from another loop.

    Args:
        loaded: The model and its processor.
        name: Of the model.

    Attributes:
        app: transformers' application; middleware may be put around it before the first call.
    """

    def __init__(self, loaded: "LoadedModel", name: str) -> None:
        self._turn: Turn | None = None
        self._context = context_of(loaded.model)
        self._loop: asyncio.AbstractEventLoop | None = None
        server = _module("server")
        manager, state = _manager(loaded, name), self._state()
        wanted = inspect.signature(server.build_server).parameters
        handlers = {
            key: getattr(_module(module), kind)(model_manager=manager, generation_state=state)
            for key, (module, kind) in _HANDLERS.items()
            if key in wanted
        }
        self.app = server.build_server(manager, generation_state=state, **handlers)
        self.app.add_exception_handler(Exception, self._failed)

    def _failed(self, request: Any, error: Exception) -> Any:
        """Return the answer to a request that the server behind broke at."""
        from starlette.responses import JSONResponse

        turn = self._turn
        text = f"{type(error).__name__}: {error}"
        if turn is not None and turn.refused is not None:
            return JSONResponse({"detail": turn.refused.text}, status_code=turn.refused.status)
        if turn is not None and turn.generating:
            return JSONResponse({"detail": f"the model failed: {text}"}, status_code=500)
        return JSONResponse(
            {"detail": f"the model's processor cannot take this request: {text}"}, status_code=400
        )

    async def ask(self, path: str, body: bytes, turn: Turn, out: Callable[[Message], None]) -> None:
        """Pass a request on and wait for its end.

        Args:
            path: Of the request.
            body: JSON.
            turn: Its turn; there is one at a time.
            out: Called in the caller's loop with every message of the answer.
        """
        here, there = asyncio.get_running_loop(), self._running()

        async def send(message: Message) -> None:
            here.call_soon_threadsafe(out, message)

        async def run() -> None:
            self._turn = turn
            try:
                await self.app(_scope(path, body), _receiver(body), send)
            except Exception:
                # It has answered, and raises for whoever would write a traceback.
                return
            finally:
                self._turn = None

        # Shielded: one that has begun ends by itself, at the next token, and the turn with it.
        work = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), there))
        await asyncio.shield(work)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=self._loop.run_forever, name="prunetune-behind", daemon=True
            ).start()
        return self._loop

    def _state(self) -> Any:
        """Return transformers' generation state, whose managers heed a turn's end."""
        utils = _module("utils")
        base: Any = utils.GenerateManager
        behind = self

        class Heeding(base):  # type: ignore[misc]
            def generate_streaming(
                self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any
            ) -> Any:
                more = behind._begin(inputs, processor)
                return super().generate_streaming(
                    model, _tokenizer(processor), more, *args, **kwargs
                )

            async def generate_non_streaming(
                self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any
            ) -> Any:
                more = behind._begin(inputs, processor)
                return await super().generate_non_streaming(
                    model, _tokenizer(processor), more, *args, **kwargs
                )

        state = utils.GenerationState()
        managers: dict[str, Any] = {}

        def get_manager(model_id: str, use_cb: bool = False) -> Any:
            if model_id not in managers:
                managers[model_id] = Heeding()
            return managers[model_id]

        state.get_manager = get_manager
        return state

    def _begin(self, inputs: Any, processor: Any) -> dict[str, Any]:
        """Return what is generated from, with what ends it; called in the loop behind."""
        turn = self._turn
        if turn is None:
            return {**inputs}
        turn.prompt = int(inputs["input_ids"].shape[-1])
        if self._context is not None and turn.prompt >= self._context:
            turn.refused = Refused(
                400,
                f"the prompt has {turn.prompt} tokens, pictures included; the model's context "
                f"has {self._context}",
            )
            raise ValueError(turn.refused.text)
        turn.generating = True
        read = partial(_tokenizer(processor).decode, skip_special_tokens=True)
        return {**inputs, "stopping_criteria": [turn.criterion(self._context, read)]}


def _tokenizer(processor: Any) -> Any:
    # What `generate` is given as a tokenizer has to be one, not a processor.
    return getattr(processor, "tokenizer", processor)


def context_of(model: Any) -> int | None:
    """Return how many tokens a model's prompt and answer may have; None: not said."""
    text = model.config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    return int(found) if isinstance(found, int) and found > 0 else None


def _scope(path: str, body: bytes) -> dict[str, Any]:
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "server": ("localhost", 80),
        "client": ("localhost", 1),
        "state": {},
    }


def _receiver(body: bytes) -> Callable[[], Awaitable[Message]]:
    """Return what gives the body, and then nothing: the client never leaves."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return receive


def _manager(loaded: "LoadedModel", name: str) -> Any:
    """Return a model manager of transformers that has one model and neither loads nor lets go."""
    base: Any = _module("model_manager").ModelManager

    class OneModel(base):  # type: ignore[misc]
        @staticmethod
        def process_model_name(model_id: str) -> str:
            # Answers say it: the name that requests use, and no revision of the hub's.
            return model_id

        def load_model_and_processor(self, asked: str, *args: Any, **kwargs: Any) -> Any:
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


def told(detail: bytes) -> str:
    """Return what an answer of the server behind says is wrong."""
    try:
        found = json.loads(detail)
        said = found.get("detail", found.get("error", found))
    except (ValueError, AttributeError):
        return "the server behind failed"
    if isinstance(said, list) and said and isinstance(said[0], dict):
        said = said[0].get("msg", said[0])
    return str(said)


def _module(name: str) -> Any:
    return import_module(f"{_SERVING}.{name}")
