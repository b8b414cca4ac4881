"""``--bench`` and ``--price``: times the config of a study on this device."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prunetune.cli._output import Output
    from prunetune.provenance import Saving
    from prunetune.study.find import Found

Bench = Annotated[
    bool,
    typer.Option("--bench", help="Time the config on this device, on requests of the data."),
]
Price = Annotated[
    str | None,
    typer.Option(metavar="P/h", help="Of this device, e.g. 2.5/h: what requests cost; times too."),
]


def price_named(text: str | None) -> float | None:
    """Parse ``--price``, before anything is loaded."""
    from prunetune.deploy.saving import price_of

    return None if text is None else price_of(text)


def bench_study(
    found: "Found",
    loaded: Any,
    samples: "Sequence[Any]",
    price: float | None,
    show: "Callable[..., None]",
) -> "Saving":
    """Measure what a study's config saves, and keep it in the study and its configs.

    Raises:
        StudyError: The study has no config yet.
    """
    from prunetune.deploy.saving import measure_saving
    from prunetune.review.facts import study_facts
    from prunetune.review.report.report import chosen_config
    from prunetune.study.find import files_of
    from prunetune.study.outcome.savings import keep_saving

    config, trial = chosen_config(study_facts(found.study, found.spec))
    if config is None or trial is None:
        raise StudyError(f"--bench: study {found.study.study_name!r} has no config to time yet")
    saving = measure_saving(
        loaded,
        config,
        samples,
        price=price,
        advance=lambda done, total: show("timed requests", done, total),
    )
    keep_saving(found.study, trial, saving, files_of(found, trial))
    return saving


def print_saving(out: "Output", saving: "Saving") -> None:
    """Print what is saved, a line or two."""
    from prunetune.review.saved import saved_rows, saved_words

    out.line()
    out.line(saved_words(saving))
    out.table(("on this device", ">unpruned", ">pruned"), saved_rows(saving))
