"""``search``: create or resume a study."""

import logging
import math
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from prunetune.cli._app import (
    AsJson,
    ModelName,
    SkipBad,
    Threads,
    at_least,
    one_of,
    verb,
)
from prunetune.cli._flags import budget_of, optional_names, space_of
from prunetune.cli._loading import Loading
from prunetune.cli._output import Output, note, progress
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.spec import StudySpec
    from prunetune.study.outcome.pareto import FrontResult
    from prunetune.study.outcome.summary import SearchResult
    from prunetune.study.prepare import Prepared
    from prunetune.study.workers.crew import Workers


logger = logging.getLogger(__name__)


@verb(
    "search",
    "prunetune search --model tiny --keep 0.25 --trials 20",
    "prunetune search --spec studies/tiny.toml --timeout 3600 --json",
    "prunetune search --model tiny --keep 0.1 --data pictures/ --metric kl --scorers topv,coverage",
    "prunetune search --model tiny --flops 0.3 --patience 50",
    "prunetune search --model tiny --objective pareto --keep 0.05:0.5",
)
def search(
    model: ModelName = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="B", help="Budget: mean share of image tokens over all layers.  [default: 0.25]"
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(metavar="X", help="Or: share of the unpruned prefill's FLOPs."),
    ] = None,
    kv_mib: Annotated[
        str | None,
        typer.Option(metavar="Y", help="Or: MiB of image tokens' KV cache, average sample."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="metric, or pareto: metric and cost, over a range --keep 0.05:0.5.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Calibration data: tiny, a folder, .jsonl or hf:ID."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Held-out data.  [default: a part of --data]"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="At most N calibration samples.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Trials the study ends with.  [default: 100]")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Start no further trial after S seconds.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Stop after N trials without a better one.  [default: 0, off]"
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="cosine (the gap), kl or cosine+kl.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="tpe, tpe-uni, gp, cmaes, nsga2, qmc, random."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of sampler, split and order.  [default: 0]")
    ] = None,
    trial_pruner: Annotated[
        str | None, typer.Option(metavar="NAME", help="Optuna's early stopping: wilcoxon or none.")
    ] = None,
    scorers: Annotated[
        str | None, typer.Option(metavar="A,B", help="Scorers to sum; see: prunetune scorers.")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(metavar="A-B", help="Fewest and most stages, in 1-3.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A-B", help="First and last layer of a stage.")
    ] = None,
    presets: Annotated[
        str | None,
        typer.Option("--preset", metavar="A,B", help="Published methods tried first, or none."),
    ] = None,
    spec: Annotated[
        str | None, typer.Option(metavar="FILE", help="Study spec (TOML); flags override it.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The run's folder.  [default: studies/MODEL-BUDGET]"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="PRUNETUNE_STORAGE",
            show_envvar=False,
            help="Database of the study, also $PRUNETUNE_STORAGE.  [default: FOLDER/study.db]",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the study.  [default: by the spec]")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Samples between two checks of the trial pruner.")
    ] = 8,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes here that share the study.")
    ] = 1,
    cache_dir: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Unpruned references; also $PRUNETUNE_CACHE."),
    ] = None,
    cache_limit: Annotated[
        float, typer.Option(metavar="GIB", help="Size of the cache; the oldest goes first.")
    ] = 20.0,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep references in memory only.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write no report.html at the end.")
    ] = False,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Search where, how much and with which weights to prune; freeze the best in one config.

    The run's folder gets study.db, spec.toml, config.json, report.html and log.jsonl. The same
    command resumes a study that was interrupted or is given more trials; on other machines, with
    one --storage postgresql://..., it joins the study.
    """
    from prunetune.interrupts import heeded
    from prunetune.spec import StudySpec
    from prunetune.study.workers.crew import Cache, Workers

    at_least("--batch-size", batch_size, 1)
    at_least("--workers", workers, 1)
    at_least("--cache-limit", cache_limit, 0)
    if not math.isfinite(cache_limit):
        raise ConfigError(f"--cache-limit: received {cache_limit:g}, allowed a finite number")
    names = {"sampler": sampler, "metric": metric, "objective": objective}
    for flag, value in (*names.items(), ("trial_pruner", trial_pruner)):
        allowed = get_args(StudySpec.model_fields[flag].annotation)
        one_of(f"--{flag.replace('_', '-')}", value, allowed)
    flags = {
        "model": model,
        "revision": loading.pop("revision"),
        **budget_of({"keep": keep, "flops": flops, "kv_mib": kv_mib}),
        "objective": objective,
        "data": data,
        "held_out": held_out,
        "samples": samples,
        "trials": trials,
        "timeout": timeout,
        "patience": patience,
        "metric": metric,
        "sampler": sampler,
        "seed": seed,
        "trial_pruner": trial_pruner,
        "presets": [] if presets == "none" else optional_names("--preset", presets),
        "space": space_of(scorers, stages, layers),
    }
    given = {name: value for name, value in flags.items() if value is not None and value != {}}
    wanted = StudySpec.load(spec, given) if spec else StudySpec.parse(given, origin="search")
    how = {
        "batch_size": batch_size,
        "cache": Cache(cache_dir, int(cache_limit * (1 << 30)), not no_cache),
        "workers": Workers(workers, threads),
    }
    where = {"storage": storage, "study_name": study}
    options = {"skip_bad": skip_bad, **loading}
    try:
        # SIGTERM is a batch system's warning: it ends a search as Ctrl-C does, resumable.
        with heeded(signal.SIGINT, signal.SIGTERM):
            result, prepared = _run(wanted, out, where, options, how, not no_report)
    except KeyboardInterrupt:
        from prunetune.study.database.urls import redact

        if storage is None or redact(storage) == storage:
            raise
        # The line that would be printed repeats the command, password included.
        note("interrupted; the same command resumes")
        raise typer.Exit(130) from None
    from prunetune.cli._results import report

    report(Output(as_json), result, prepared)


def _run(
    spec: "StudySpec",
    out: str | None,
    names: dict[str, Any],
    options: dict[str, Any],
    how: dict[str, Any],
    report: bool,
) -> "tuple[SearchResult | FrontResult, Prepared]":
    from prunetune.cli._environment import quieten_optuna, set_threads
    from prunetune.study.prepare import prepare
    from prunetune.study.run import run

    quieten_optuna()
    how["workers"] = share_threads(how["workers"])
    set_threads(how["workers"].threads)
    prepared = prepare(spec, out=out, **names, **options)
    if prepared.skipped:
        note(f"skipped {len(prepared.skipped)} bad: {'; '.join(prepared.skipped[:3])}")
    logger.info(
        "searching %s at %s on %d samples, %d trials; in %s",
        *(prepared.spec.model, prepared.spec.label, len(prepared.calibration)),
        *(prepared.spec.trials, prepared.out),
    )
    with progress() as show:
        result = run(
            prepared,
            **names,
            **how,
            options=options,
            progress=lambda step: show(step.name, step.done, step.total, step.detail),
        )
        if report:
            result = replace(result, report=_write_page(prepared, names, show))
    return result, prepared


def _write_page(prepared: "Prepared", names: dict[str, Any], show: Any) -> str | None:
    """Write the study's page; whatever is wrong with it, the search and its config stand."""
    try:
        from prunetune.review.report.report_file import report_search

        return str(report_search(prepared, **names, progress=show).path)
    except Exception as error:
        logger.warning("no report: %s: %s", type(error).__name__, error)
        return None


def share_threads(workers: "Workers") -> "Workers":
    """Give each of several workers an equal share of the cores, unless told otherwise."""
    from prunetune.cli._environment import physical_cores

    if workers.threads is not None or workers.count == 1:
        return workers
    return replace(workers, threads=max(1, physical_cores() // workers.count))
