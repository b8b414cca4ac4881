"""What ``bench`` prints, and ``--bench`` and ``--price`` of other verbs."""

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._output import Output, number
from prunetune.errors import PrunetuneError, StudyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prunetune.deploy.bench import Bench, CaseResult
    from prunetune.provenance import Saving
    from prunetune.study.clock import Clock
    from prunetune.study.find import Found
    from prunetune.study.prepare import Prepared

logger = logging.getLogger(__name__)


def print_bench(out: Output, result: "Bench", name: str | None, where: dict[str, Any]) -> None:
    """Print what a bench measured, for people."""
    """Print what a bench measured, for people."""
    out.line(
        f"{name}: {result.image_tokens} image + {result.text_tokens} text tokens, "
        f"{result.new_tokens} new, batch {result.batch_size}, {result.rounds} rounds; "
        f"{where['device']}, {where['dtype']}, {where['attn']}"
    )
    out.line()
    out.table(
        (
            *("case", ">tokens", ">retention", ">decode ms", ">total ms", ">ratio", ">KV MiB"),
            *(">KV ratio", ">peak MiB"),
        ),
        [_row(case) for case in result.cases],
    )
    out.line()
    out.table(
        (
            *("to the first token", ">encode ms", ">prefill ms", ">sum ms", ">ratio"),
            *(">tower GFLOPs", ">language GFLOPs", ">sum", ">FLOP ratio"),
        ),
        [_first_row(case) for case in result.cases],
    )
    out.line()
    for case in result.cases[1:]:
        if case.verdict is not None:
            out.line(f"{case.name}: {case.verdict.text}")
    exact = all(case.visual_slots == case.promised_slots for case in result.cases)
    kept = "to the token what the retentions say" if exact else "NOT WHAT THE RETENTIONS SAY"
    out.line(f"visual KV cache: {kept}")
    peak = "torch's allocations" if where["device"][:3] != "cpu" else "the whole process, resident"
    out.line(f"peak: {peak}; prefill: language model, scoring included; encode: image encoder")
    if all(case.name != "resized" for case in result.cases):
        out.line("resized: left out: pictures of any size have more tokens than the config leaves")


def _row(case: "CaseResult") -> tuple[str, ...]:
    from prunetune.deploy.memory import MIB

    return (
        case.name,
        str(case.image_tokens),
        number(case.mean_retention),
        "-" if case.decode is None else _ms(case.decode.median),
        _ms(case.total.median),
        number(case.total_ratio.median, 3),
        f"{case.kv_bytes / MIB:.1f}",
        number(case.kv_ratio),
        "-" if case.peak is None else f"{case.peak / MIB:.0f}",
    )


def _first_row(case: "CaseResult") -> tuple[str, ...]:
    flops = case.tower_flops, case.language_flops
    return (
        case.name,
        _ms(case.encode.median),
        _ms(case.prefill.median),
        _ms(case.first.median),
        number(case.first_ratio.median, 3),
        *(f"{count / 1e9:.4g}" for count in (*flops, sum(flops))),
        number(case.first_flops_ratio, 3),
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


TimeIt = Annotated[
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


def timed_requests() -> int:
    """Return how many requests ``bench_study`` runs at most: both cases, and once to warm up."""
    from prunetune.deploy.saving import REQUESTS, ROUNDS

    return 2 * (ROUNDS + 1) * REQUESTS


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


def bench_search(
    prepared: "Prepared",
    names: dict[str, Any],
    price: float | None,
    show: Any,
    clock: "Clock",
) -> "Saving | None":
    """Time what was found; whatever is wrong there, the search and its config stand."""
    from prunetune.review.report.report_file import found_search
    from prunetune.study.clock import OutOfTime

    def shown(name: str, done: int, total: int) -> None:
        # The report's time is not the bench's.
        if clock.up and done < total:
            raise OutOfTime(
                f"the timeout of {clock.seconds:g} s has come after {done} of {total} timed "
                f"requests; time it with: prunetune report {prepared.out} --bench"
            )
        show(name, done, total)

    try:
        shown("timed requests", 0, timed_requests())
        found, samples = found_search(prepared, **names), prepared.held_out.samples
        return bench_study(found, prepared.loaded, samples, price, shown)
    except PrunetuneError as error:
        logger.warning("not timed: %s", error)
        return None
    except Exception as error:
        logger.warning("not timed: %s: %s", type(error).__name__, error)
        return None


def print_saving(out: "Output", saving: "Saving") -> None:
    """Print what is saved, a line or two."""
    from prunetune.review.saved import saved_rows, saved_words

    out.line()
    out.line(saved_words(saving))
    out.table(("on this device", ">unpruned", ">pruned"), saved_rows(saving))
