"""The typer application: registers verbs and turns whatever happens into an exit status."""

import functools
import inspect
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, TypeVar

import typer
from typer.main import get_command

from prunetune.cli._flags import refuse_empty
from prunetune.cli._loading import FLAGS, gather, spread
from prunetune.cli._output import Output, as_json, check_streams, note, shortened, silence, told
from prunetune.cli.printed.failures import explain
from prunetune.errors import ConfigError
from prunetune.secrets import redact, remember

VERBS = (
    "search",
    "status",
    "export",
    "push",
    "verify",
    "bench",
    "serve",
    "show",
    "report",
    "diff",
    "dashboard",
    "models",
    "scorers",
    "selectors",
    "presets",
    "data",
)
"""One module each, in the order ``--help`` lists them."""

_COMPLETE = "_PRUNETUNE_COMPLETE"

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

AsJson = Annotated[
    bool, typer.Option("--json", help="End stdout with one JSON object; the rest is on stderr.")
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="CPU threads.  [default: physical cores]", show_default=False),
]
ModelName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="tiny (embedded), an alias, a hub id or a folder."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out bad pictures and rows; they are counted.")
]
Match = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Answers: vqa (spelling aside), exact, contains."),
]
TemplateArg = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Option of the model's chat template; repeatable."),
]
OneName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Show this one only.  [default: all]")
]
AllowRemote = Annotated[
    bool, typer.Option("--allow-remote", help="Fetch pictures that rows name by http URLs.")
]

app = typer.Typer(
    name="prunetune",
    # bash, zsh and fish: prunetune --install-completion, or --show-completion.
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nStart with:\n  prunetune search --model tiny --keep 0.25 --trials 20",
)


def _version(wanted: bool) -> None:
    if wanted:
        from prunetune import __version__

        print(f"prunetune {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Search, freeze and apply visual-token pruning of vision-language models."""


def verb(name: str, *examples: str) -> Callable[[F], F]:
    """Register a function as a verb, with the options that all verbs have.

    A parameter ``loading`` becomes the flags of loading a model (``_loading.FLAGS``).

    Args:
        name: What is typed.
        examples: Runnable command lines, shown by ``--help``.
    """
    options = {
        "verbose": Annotated[
            bool, typer.Option("--verbose", "-v", help="Let the libraries beneath speak too.")
        ],
        "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
    }

    def register(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, verbose: bool, debug: bool, **kwargs: Any) -> Any:
            from prunetune.cli._environment import set_logging, set_waiting

            set_logging(verbose)
            refuse_empty(kwargs)
            # What is timed there is what a deployment gets.
            if name != "bench":
                set_waiting()
            return function(*args, **(gather(kwargs) if loads else kwargs))

        signature = inspect.signature(function)
        loads = "loading" in signature.parameters
        more = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for key, kind in options.items()
        ]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*spread(list(signature.parameters.values())), *more]
        )
        flags = FLAGS if loads else {}
        run.__annotations__ = {**function.__annotations__, **flags, **options}
        lines = "\n".join(f"  {example}" for example in examples)
        title = "Examples" if len(examples) > 1 else "Example"
        app.command(name, epilog=f"\b\n{title}:\n{lines}")(run)
        return function

    return register


def at_least(flag: str, value: float | None, least: int) -> None:
    """Refuse a flag's value below ``least``, or not a number; None is fine.

    Raises:
        ConfigError: It is.
    """
    if value is not None and not value >= least:
        raise ConfigError(f"{flag}: received {value:g}, allowed {least} or more")


def within(flag: str, value: float | None, least: int, most: int) -> None:
    """Refuse a flag's value outside of a range; None is fine.

    Raises:
        ConfigError: It is outside, or not a number.
    """
    if value is not None and not least <= value <= most:
        raise ConfigError(f"{flag}: received {value:g}, allowed {least} to {most}")


def one_of(flag: str, value: str | None, allowed: Sequence[str]) -> None:
    """Refuse a flag's value that is not among ``allowed``; None is fine.

    Raises:
        ConfigError: It is not; the message suggests a near one.
    """
    if value is not None and value not in allowed:
        near = get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{flag}: received {value!r}, allowed {', '.join(allowed)}{hint}")


def named(what: str, name: str | None, rows: Mapping[str, T]) -> list[T]:
    """Return the row of a name; without one all rows.

    Raises:
        ConfigError: There is no such name; the message suggests a near one.
    """
    one_of(f"{what}: NAME", name, list(rows))
    return list(rows.values()) if name is None else [rows[name]]


_BEGUN: ContextVar[float | None] = ContextVar("begun", default=None)


def begun() -> float:
    """Return ``time.monotonic()`` when the command began, before anything heavy was imported.

    Now, where it was not started by ``run``.
    """
    started = _BEGUN.get()
    return time.monotonic() if started is None else started


def run(args: Sequence[str], started: float) -> int:
    """Parse and run; every failure ends as one line on stderr and an exit status.

    Args:
        args: Of the command.
        started: ``time.monotonic()`` when it began.
    """
    _BEGUN.set(started)
    argv = list(args) or ["--help"]
    remember(argv)
    try:
        check_streams(argv)
        for module in VERBS:
            import_module(f"prunetune.cli.{module}")
        command = get_command(app)
        if _COMPLETE in os.environ:
            # Asked by a shell on every Tab.
            command.main(args=argv, prog_name="prunetune", complete_var=_COMPLETE)
        with command.make_context("prunetune", argv) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        text = _resume_line(argv)
        note(text)
        if as_json(argv):
            Output(True).finish(told(text, 130))
        return 130
    except BrokenPipeError:
        silence()
        return 141
    except Exception as error:
        if "--debug" in argv:
            from prunetune.hub.reasons import without_secrets

            note(without_secrets(traceback.format_exc()))
        status, text = explain(error, argv, VERBS)
        text = shortened(" ".join(text.split()))
        note(f"error: {text}")
        if as_json(argv):
            Output(True).finish(told(text, status))
        silence()
        return status
    return 0


def _resume_line(argv: Sequence[str]) -> str:
    if argv[0] == "search":
        # Shown only where it can be typed again as it is shown.
        plain = all(redact(word) == word for word in argv)
        typed = f": prunetune {shlex.join(argv)}" if plain else ""
        return f"interrupted; the same command resumes{typed}"
    return "interrupted"
