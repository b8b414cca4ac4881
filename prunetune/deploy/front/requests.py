"""Whether a request is one that the model can be asked, field by field.

What OpenAI's API allows and the server behind leaves alone is not looked at where it changes no
answer (``user``, ``store``), and refused where it would (``unheeded``);
fields that neither knows the server behind refuses.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from prunetune.deploy.front.limits import Limits
from prunetune.deploy.front.messages import Content
from prunetune.deploy.front.pictures import Reference
from prunetune.deploy.front.replies import Refused
from prunetune.deploy.front.unheeded import refuse_unheeded

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
LOAD = "/load_model"
ASKED = (CHAT, RESPONSES, COMPLETIONS)

_Count = Annotated[int, Field(ge=1, le=1 << 31)]
_Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
_ONLY_ONE = Field(ge=1, le=1)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Asked(_Strict):
    model: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[float, Field(gt=-1, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[_TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None
    stop: _Word | Annotated[list[_Word], Field(max_length=16)] | None = None
    n: Annotated[int, _ONLY_ONE] | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    max_output_tokens: _Count | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    instructions: str | None = None
    suffix: str | None = None
    generation_config: str | None = None
    chat_template_kwargs: (
        Annotated[dict[str, str | bool | int | float | None], Field(max_length=32)] | None
    ) = None


class _Generation(_Strict):
    """What of ``generation_config`` a request may set: nothing that multiplies the work."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    max_new_tokens: _Count | None = None
    min_new_tokens: _Count | None = None
    do_sample: bool | None = None
    num_beams: Annotated[int, Field(ge=1, le=8)] | None = None
    temperature: Annotated[float, Field(ge=0.001, le=2)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None


# What `apply_chat_template` takes beside the template's own variables.
_RESERVED = frozenset(
    (
        *("conversation", "messages", "chat_template", "tools", "documents", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "processor_kwargs", "load_audio_from_video", "num_frames", "fps"),
        *("sampling_rate", "video_load_backend"),
    )
)


class Checker:
    """Checks requests of one model.

    Args:
        limits: Bounds.
        name: The model's.
        placeholders: Texts that its processor takes for a picture or a video.
        vocabulary: Tokens that it knows.
    """

    def __init__(
        self, limits: Limits, name: str, placeholders: Sequence[str], vocabulary: int | None
    ) -> None:
        self._limits, self._name, self._vocabulary = limits, name, vocabulary
        self._placeholders = placeholders

    def check(self, path: str, said: dict[str, Any]) -> list[Reference]:
        """Return where the request names pictures.

        Raises:
            Refused: It is none that the model can be asked.
        """
        if path == LOAD:
            if not isinstance(said.get("model"), str):
                raise Refused(400, "model: it is missing, or no text", "model")
            return []
        self._fields(said)
        refuse_unheeded(path, said)
        content = Content(self._limits)
        if path == CHAT:
            content.messages(said.get("messages"))
        elif path == RESPONSES:
            content.input(said.get("input"))
            # The server behind streams where nothing is said; OpenAI's does not.
            said["stream"] = bool(said.get("stream"))
        elif not isinstance(said.get("prompt"), str) or not said["prompt"]:
            raise Refused(
                400, "prompt: it is missing or empty, or no text; give one text", "prompt"
            )
        self._texts(said, content.references)
        return content.references

    def _fields(self, said: dict[str, Any]) -> None:
        _validated(_Asked, said)
        if said.get("model") not in (None, self._name):
            raise Refused(
                400,
                f"model: received {said['model'][:100]!r}; this server has the model "
                f"{self._name!r} only",
                "model",
            )
        if 0 < (said.get("temperature") or 0) < 0.001:
            raise Refused(400, "temperature: allowed 0, or 0.001 to 2", "temperature")
        for token in said.get("logit_bias") or {}:
            if self._vocabulary is not None and int(token) >= self._vocabulary:
                raise Refused(
                    400,
                    f"logit_bias: received token {token}, allowed 0 to {self._vocabulary - 1}",
                    "logit_bias",
                )
        if said.get("logit_bias") is not None:
            # The server behind takes no whole numbers.
            said["logit_bias"] = {key: float(bias) for key, bias in said["logit_bias"].items()}
        if (text := said.get("generation_config")) is not None:
            _generation(text)
        for key in said.get("chat_template_kwargs") or {}:
            if key in _RESERVED or key.startswith("_") or not key.isidentifier():
                raise Refused(
                    400,
                    f"chat_template_kwargs: received {key[:60]!r}, which is no variable of a chat "
                    "template that a request may set",
                    "chat_template_kwargs",
                )

    def _texts(self, said: dict[str, Any], references: list[Reference]) -> None:
        """Look at every text of the request but its pictures."""
        pictures = {(id(holder), key) for holder, key in references}
        left, level = self._limits.text, [said]
        while level:
            inner: list[Any] = []
            for value in level:
                items = value.items() if isinstance(value, dict) else enumerate(value)
                for key, item in items:
                    if isinstance(item, dict | list):
                        inner.append(item)
                    elif isinstance(item, str) and (id(value), key) not in pictures:
                        left -= len(item)
                        self._placeholder(item)
            level = inner
            if left < 0:
                raise Refused(
                    400, f"the request has more than {self._limits.text:,} letters of text"
                )

    def _placeholder(self, text: str) -> None:
        for word in self._placeholders:
            if word in text:
                raise Refused(
                    400,
                    f"a text holds {word!r}, which this model takes for the place of a picture; "
                    "send pictures as parts of type image_url, and write the word otherwise",
                )


def _generation(text: str) -> None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(400, "generation_config: allowed a JSON object, as text", "generation_config")
    _validated(_Generation, found, "generation_config")


def _validated(kind: type[BaseModel], said: dict[str, Any], where: str | None = None) -> None:
    try:
        kind.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        names = [str(part) for part in first["loc"][:2] if not _is_branch(part)]
        field = ".".join([*([where] if where else []), *names])
        shown = repr(first["input"])
        received = "" if len(shown) > 80 else f" received {shown},"
        raise Refused(400, f"{field}:{received} {_lower(first['msg'])}", field) from None


def _is_branch(part: int | str) -> bool:
    """Tell whether a part of an error's place is pydantic's name of a type, and no field."""
    return isinstance(part, str) and ("[" in part or part == "str")


def _lower(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}"
