"""What is wrong with data, in one line that a person can act on."""

from typing import Any

from pydantic import ValidationError, WrapValidator

_SHOWN = 80


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
