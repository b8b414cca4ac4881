"""What a failure is told as: an exit status and one line."""

import errno
from collections.abc import Sequence

import typer

from prunetune.errors import PrunetuneError

EXTRA = frozenset(
    {
        "alembic",
        "cmaes",
        "datasets",
        "jinja2",
        "numpy",
        "optuna",
        "optuna_dashboard",
        "plotly",
        "psycopg",
        "rich",
        "scipy",
        "sqlalchemy",
        "tomli_w",
        "typer",
    }
)
"""Modules that ``prunetune[search]`` installs and a deployment does without."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
# PyTorch's allocator on CPUs, and its thread pool, raise plain RuntimeErrors.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def explain(error: Exception, argv: Sequence[str], verbs: Sequence[str]) -> tuple[int, str]:
    """Return the exit status of a failure and what to tell a person about it.

    Args:
        error: What was raised.
        argv: What was typed.
        verbs: What can be.
    """
    if isinstance(error, PrunetuneError):
        return 2, str(error)
    if isinstance(error, typer.BadParameter.__mro__[2]):
        return 2, _usage(error, argv, verbs)
    if isinstance(error, ModuleNotFoundError):
        name = str(error.name).partition(".")[0]
        if name in EXTRA:
            return 2, f"{name} is not installed; run: pip install 'prunetune[search]'"
    if _out_of_memory(error):
        return 2, "out of memory; lower --batch-size or --samples, or use --dtype bfloat16"
    if isinstance(error, OSError) and error.filename is not None:
        return 2, f"{error.filename}: {error.strerror}; check the path, its rights and the disk"
    if isinstance(error, OSError) and error.errno in _FULL:
        return 2, f"cannot write: {error.strerror}; check the disk, and where stdout goes"
    shown = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return 3, f"{shown}; this is a bug, run with --debug for the traceback"


def _out_of_memory(error: Exception) -> bool:
    """Tell whether memory is over, also where a library says so by a plain error."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


def _usage(error: Exception, argv: Sequence[str], verbs: Sequence[str]) -> str:
    """Return a message of the parser with what was received and where to look."""
    text = str(getattr(error, "message", "") or error).rstrip(".")
    parameter = getattr(error, "param", None)
    names = list(getattr(parameter, "opts", ()))
    if not isinstance(error, typer.BadParameter):
        text = str(getattr(error, "format_message", lambda: text)()).rstrip(".")
    elif names:
        shown = names[0] if names[0].startswith("-") else names[0].upper()
        received = _received(names, argv)
        missing = type(error).__name__ == "MissingParameter"
        text = f"{shown} is missing" if missing else f"{shown}:{received} {_lower(text)}"
    name = next((word for word in argv if word in verbs), None)
    return f"{text}; see: prunetune {name + ' ' if name else ''}--help"


def _lower(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}"


def _received(names: Sequence[str], argv: Sequence[str]) -> str:
    for k, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in names and equals:
            return f" received {value!r},"
        if word in names and k + 1 < len(argv):
            return f" received {argv[k + 1]!r},"
    return ""
