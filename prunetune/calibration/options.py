"""What follows a source's name: ``?option=value&option=value``, the text as it stands."""

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

from prunetune.errors import DataError
from prunetune.models.weights import existing

_FIRST, _NEXT = re.compile(r"\?(?=[A-Za-z_]\w*=)"), re.compile(r"&(?=[A-Za-z_]\w*=)")


def read_options(spec: str) -> tuple[str, dict[str, str]]:
    """Return a source's name and its options.

    Nothing is unescaped: ``+``, ``%`` and blanks mean themselves, and so does ``&`` unless a word
    and ``=`` follow.

    Raises:
        DataError: What follows the name is not made of options, or one is given twice.
    """
    if spec and existing(spec):
        return spec, {}
    found = _FIRST.search(spec)
    name, query = (spec[: found.start()], spec[found.end() :]) if found else (spec, "")
    if found is None and "?" in spec:
        name, _, query = spec.partition("?")
        raise DataError(f"options {query!r} of {name!r} are not KEY=VALUE&KEY=VALUE")
    pairs = [part.partition("=")[::2] for part in _NEXT.split(query)] if query else []
    return name, _once(name, query, pairs)


def read_options_as_before(spec: str) -> tuple[str, dict[str, str]]:
    """Return what releases up to 0.1 read: escapes of URLs, ``+`` for a blank."""
    if spec and existing(spec):
        return spec, {}
    name, _, query = spec.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise DataError(f"options {query!r} of {name!r} are not KEY=VALUE&KEY=VALUE") from error
    return name, _once(name, query, pairs)


def _once(name: str, query: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    options = dict(pairs)
    if len(options) < len(pairs):
        raise DataError(f"options {query!r} of {name!r} name a key twice; allowed: once")
    return options


def refuse_unknown(shown: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse an option that a source does not have.

    Raises:
        DataError: There is one; the message says how to write a text that looks like an option.
    """
    if unknown := sorted(set(options) - set(allowed)):
        raise DataError(
            f"{shown}: unknown option {unknown[0]!r}; allowed: {', '.join(allowed)}; a question "
            f"that holds '&{unknown[0]}=' can stand in the rows of a metadata.jsonl"
        )
