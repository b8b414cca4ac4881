"""What is wrong with data, in one line that a person can act on."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, WrapValidator

from prunetune.errors import ConfigError

_SHOWN = 80
_LINE = 300


def allowed(what: str) -> WrapValidator:
    """Name the whole range where pydantic names the bound that was crossed."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"received {shown(value)}, allowed {what}") from None

    return WrapValidator(check)


def describe(error: ValidationError) -> str:
    """Return the first problem of a pydantic error as one line: field, value received, allowed."""
    first = error.errors(include_url=False)[0]
    field = ".".join(plain(str(part)) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; remove it or upgrade prunetune{more}"
    if first["type"] == "missing":
        return f"{field}: missing{more}"
    if first["type"] == "value_error":
        return f"{field + ': ' if field else ''}{plain(message)}{more}"
    return f"{field}: received {shown(first['input'])}, {message[0].lower() + message[1:]}{more}"


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to what fits into a line."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def plain(text: str) -> str:
    """Keep what came from a file on one line of printable characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """Return an error's reason as one line: what ends at a colon goes on in the next one."""
    text = plain(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= _LINE else f"{text[: _LINE - 3]}..."


def check_kinds(data: Mapping[str, Any], spec: type[BaseModel], origin: str) -> None:
    """Refuse a text or a truth value where a number belongs: pydantic would make one of it.

    Raises:
        ConfigError: There is one.
    """
    for name, value in data.items():
        kinds = spec.model_fields[name].annotation if name in spec.model_fields else None
        allowed = {kinds, *get_args(kinds)}
        if not {int, float} & allowed or {str, bool} & allowed:
            continue
        if isinstance(value, bool | str):
            raise ConfigError(f"{origin}: {name}: received {value!r}, allowed a number")
