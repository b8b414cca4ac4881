"""Fields of OpenAI's API that ask for what the server behind does not do, and leaves out silently.

Of each the values that change nothing are allowed; what only tells who asks, where an answer is
kept, or how fast it is wanted (``user``, ``store``, ``service_tier``) is not looked at.
"""

from typing import Any

from prunetune.deploy.front.replies import Refused

_NOTHING: tuple[Any, ...] = ()
_CHAT: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "tool_choice": ("auto",),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "modalities": (["text"],),
    "audio": _NOTHING,
    "web_search_options": _NOTHING,
}
_COMPLETION: dict[str, tuple[Any, ...]] = {
    "logprobs": _NOTHING,
    "echo": (False,),
    "best_of": (1,),
    "presence_penalty": (0,),
}
_RESPONSE: dict[str, tuple[Any, ...]] = {
    "text": ({}, {"format": {"type": "text"}}),
    "top_logprobs": (0,),
    "tool_choice": ("auto",),
    "background": (False,),
    "include": ([],),
    "truncation": ("disabled",),
    "previous_response_id": _NOTHING,
    "conversation": _NOTHING,
    "prompt": _NOTHING,
    "max_tool_calls": _NOTHING,
}
_FIELDS = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/v1/responses": _RESPONSE,
}


def refuse_unheeded(path: str, said: dict[str, Any]) -> None:
    """Refuse a request with a field that would be left out silently.

    Raises:
        Refused: It has one; the error names it.
    """
    for field, harmless in _FIELDS.get(path, {}).items():
        value = said.get(field)
        if value is None or any(_same(value, one) for one in harmless):
            continue
        if field == "tool_choice" and value == "none" and not said.get("tools"):
            continue
        shown = repr(value)
        received = "a value" if len(shown) > 80 else shown
        allowed = " or ".join(map(repr, harmless)) or "null"
        raise Refused(
            400,
            f"{field}: received {received}, allowed {allowed}; this server does not do what "
            "else it asks for, leave it out",
            field,
        )


def _same(value: Any, other: Any) -> bool:
    # To Python false is 0 and true is 1.
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
