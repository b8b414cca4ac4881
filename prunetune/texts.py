"""JSON and texts from outside: what can be said again, in a file and on a screen."""

import json
import tomllib
from collections.abc import Callable
from typing import Any

_DEEPEST = 200


def parse_json(
    text: str,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    *,
    halves: bool = False,
) -> Any:
    """Return what a text of JSON says.

    Args:
        text: JSON.
        pairs: Makes the objects; by default dictionaries of keys that are there once.
        halves: Let halves of surrogate pairs pass: whoever reads rows says which row has one, and
            may leave it out.

    Raises:
        ValueError: It is no JSON, is nested too deeply, has a number of thousands of digits, a key
            twice, or, without ``halves``, half of a surrogate pair, which is no character.
    """
    try:
        found = json.loads(text, object_pairs_hook=pairs or once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(_short(str(error))) from None
    check(found, halves=halves)
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a text of TOML says.

    Raises:
        ValueError: It is no TOML, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        found = tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check(found)
    return found


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of the pairs of JSON.

    Raises:
        ValueError: A key is there twice.
    """
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {_short(repr(twice))} appears twice in one object")
    return data


def check(data: Any, *, halves: bool = False) -> None:
    """Refuse plain data that cannot be written as UTF-8, or not in JSON again.

    Args:
        data: What was read.
        halves: Let halves of surrogate pairs pass.

    Raises:
        ValueError: It holds half of a surrogate pair or an endless whole number, or is nested too
            deeply.
    """
    level = [data]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list | tuple):
                inner += value
            elif isinstance(value, str) and not halves:
                _check_text(value)
            elif isinstance(value, int) and value.bit_length() > 1024:
                raise ValueError("it holds a number of more than 300 digits")
        level = inner
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"it holds {text[error.start]!r}, half of a surrogate pair, which is no character"
        ) from None


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
