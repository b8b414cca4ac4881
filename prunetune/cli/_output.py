"""What verbs print: tables and lines for people, one JSON object for programs."""

import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from prunetune.errors import ConfigError
from prunetune.secrets import redact

WIDTH = 100
"""Columns of a table where no terminal says how many there are."""
_NARROW = 12
_LONGEST = 1500
# Line feeds, and what joins the parts of one character.
_KEPT = "\n\t\u200c\u200d"


class Output:
    """Where a verb's results go.

    With ``--json`` stdout carries one JSON object and nothing else; what is for people goes to
    stderr only where it says so (``note``).

    Args:
        as_json: Whether ``--json`` was given.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Print a line for people."""
        if not self.as_json:
            print(printable(text))

    def note(self, text: str) -> None:
        """Print a line on stderr, with ``--json`` too."""
        note(text)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], wrap: str | None = None
    ) -> None:
        """Print a table for people: through rich on a terminal, else plain, 100 columns wide.

        Args:
            columns: Titles; those that start with ``>`` are aligned to the right.
            rows: Cells.
            wrap: Title of the column that is wrapped first.
        """
        if self.as_json:
            return
        rows = [[printable(cell) for cell in row] for row in rows]
        if sys.stdout.isatty():
            _rich_table(columns, rows, wrap)
        else:
            print("\n".join(plain_table(columns, rows, wrap)))

    def finish(self, payload: dict[str, Any]) -> None:
        """Print the JSON object as the last line of stdout, where it was asked for."""
        if self.as_json:
            text = json.dumps(jsonable(payload), ensure_ascii=False, allow_nan=False)
            # Flushed: a verb that serves runs on, and whoever started it waits for this line.
            print(text, flush=True)


def as_json(argv: Sequence[str]) -> bool:
    """Tell whether a command line asks for JSON."""
    words = list(argv)
    return "--json" in (words[: words.index("--")] if "--" in words else words)


_TOLD = re.compile(
    r"(?P<what>.*?)(?:: |, | )?\breceived (?P<received>.*?)[,;] allowed:? (?P<allowed>[^;]*)"
    r"(?:; (?P<do>.*))?"
)


def told(text: str, status: int) -> dict[str, Any]:
    """Return the parts of an error's line, as far as it has them, for programs."""
    found = _TOLD.fullmatch(text)
    if found is None:
        what, _, rest = text.partition("; ")
        parts: dict[str, str | None] = {"what": what, "received": None, "allowed": None}
        parts["do"] = rest or None
    else:
        parts = found.groupdict()
    return {"error": text, **parts, "status": status}


def note(text: str) -> None:
    """Print a line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return text without passwords, and without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() or c in _KEPT else repr(c)[1:-1] for c in redact(text))


def shortened(text: str) -> str:
    """Return a message at a length that a person reads; what is left out is in its middle."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 300]} [...] {text[-280:]}"


def plain_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    wrap: str | None = None,
    width: int = WIDTH,
) -> list[str]:
    """Return the lines of a table in plain text, no longer than ``width`` where cells can wrap.

    Args:
        columns: Titles; those that start with ``>`` are aligned to the right and never wrapped.
        rows: Cells.
        wrap: Title of the column that is wrapped first.
        width: Columns there are.
    """
    right = [title.startswith(">") for title in columns]
    lines = [[title.removeprefix(">") for title in columns], *[list(row) for row in rows]]
    widths = fitted(columns, rows, wrap, width)
    out = []
    for line in lines:
        cells = [_wrapped(cell, size) for cell, size in zip(line, widths, strict=True)]
        for k in range(max(len(parts) for parts in cells)):
            shown = [parts[k] if k < len(parts) else "" for parts in cells]
            out.append(
                "  ".join(
                    cell.rjust(size) if to_right else cell.ljust(size)
                    for cell, size, to_right in zip(shown, widths, right, strict=True)
                ).rstrip()
            )
    return out


def fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], wrap: str | None, width: int
) -> list[int]:
    """Return the widths of a table's columns: as wide as cells, or narrower where wrapped."""
    titles = [title.removeprefix(">") for title in columns]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    texts = [k for k, title in enumerate(columns) if not title.startswith(">")]
    for names in ([k for k in texts if titles[k] == wrap], texts):
        while over > 0:
            wide = max(names, key=lambda k: widths[k], default=None)
            if wide is None or widths[wide] <= max(_NARROW, len(titles[wide])):
                break
            widths[wide] -= 1
            over -= 1
    return widths


def _wrapped(cell: str, width: int) -> list[str]:
    # Names of presets and models stay whole where they can.
    return textwrap.wrap(cell, max(1, width), break_on_hyphens=False) or [""]


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], wrap: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(80, shutil.get_terminal_size().columns)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title, size in zip(columns, fitted(columns, rows, wrap, width - len(columns)), strict=True):
        name = title.removeprefix(">")
        table.add_column(name, justify="right" if title != name else "left", width=size)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    Console(width=width).print(table)


def jsonable(value: Any) -> Any:
    """Return ``value`` as plain JSON data without passwords; numbers JSON has not become null.

    Each text is looked at alone: in a line of JSON one text's URL would run on into the next one.
    """
    if isinstance(value, dict):
        return {redact(str(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    return redact(str(value))


def number(value: float | None, digits: int = 4) -> str:
    """Return a number for people, or a dash."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as per cent for people, or a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def check_streams(argv: Sequence[str]) -> None:
    """Refuse to begin where nothing can be said, or what was typed cannot be said again.

    Raises:
        ConfigError: stdout is closed, or an argument is not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        # Whatever the locale can write; the rest is escaped.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        raise ConfigError("stdout is closed; where no output is wanted, give >/dev/null")
    for word in argv:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError(
                f"arguments: received {word!r}, which is not UTF-8; rename the file, or give "
                "another name"
            ) from None


def silence() -> None:
    """Keep the interpreter's last flush from complaining about a stdout that takes nothing."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
