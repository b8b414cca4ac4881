"""``search``: create or resume a study."""

import logging
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from prunetune.cli import _search_flags as flags
from prunetune.cli._app import (
    AllowRemote,
    AsJson,
    Match,
    ModelName,
    SkipBad,
    TemplateArg,
    Threads,
    at_least,
    begun,
    one_of,
    verb,
    within,
)
from prunetune.cli._flags import budget_of, optional_names, promise_of, space_of, template_of
from prunetune.cli._loading import Loading
from prunetune.cli._output import Output, note
from prunetune.cli.printed.bench import (
    Price,
    TimeIt,
    bench_search,
    price_named,
    timed_requests,
)
from prunetune.cli.progress import progress

if TYPE_CHECKING:
    from prunetune.spec import StudySpec
    from prunetune.study.clock import Clock
    from prunetune.study.outcome.front_summary import FrontResult
    from prunetune.study.outcome.summary import SearchResult
    from prunetune.study.prepare import Prepared
    from prunetune.study.workers.crew import Workers


logger = logging.getLogger(__name__)
_MOST_WORKERS = 64


@dataclass(frozen=True)
class After:
    """What is done when a search has ended.

    Attributes:
        report: Write its page.
        bench: Time its config on this device.
        price: Of an hour of the device; None where it was not said.
    """

    report: bool
    bench: bool
    price: float | None


@verb(
    "search",
    "prunetune search --model tiny --keep 0.25 --trials 20",
    "prunetune search --spec studies/tiny.toml --timeout 3600 --json",
    "prunetune search --model tiny --keep 0.1 --data pictures/ --metric kl --scorers topv,coverage",
    "prunetune search --model tiny --flops 0.3 --patience 50",
    "prunetune search --model tiny --keep 0.2 --engine vllm",
    "prunetune search --model tiny --objective pareto --keep 0.05:0.5",
    "prunetune search --model tiny --max-drop 2 --bench --price 2.5/h",
)
def search(
    model: ModelName = None,
    keep: flags.Keep = None,
    flops: flags.Flops = None,
    kv_mib: flags.KvMib = None,
    objective: flags.Objective = None,
    max_drop: flags.MaxDrop = None,
    max_gap: flags.MaxGap = None,
    min_agreement: flags.MinAgreement = None,
    cheapest: flags.Cheapest = None,
    data: flags.Data = None,
    held_out: flags.HeldOut = None,
    samples: flags.Samples = None,
    held_out_samples: flags.HeldOutSamples = None,
    match: Match = None,
    template_arg: TemplateArg = None,
    allow_remote: AllowRemote = False,
    trials: flags.Trials = None,
    timeout: flags.Timeout = None,
    patience: flags.Patience = None,
    metric: flags.Metric = None,
    sampler: flags.Sampler = None,
    seed: flags.Seed = None,
    trial_pruner: flags.TrialPruner = None,
    scorers: flags.Scorers = None,
    selectors: flags.Selectors = None,
    mass: flags.Mass = None,
    pixels: flags.Pixels = None,
    stages: flags.Stages = None,
    layers: flags.Layers = None,
    engine: flags.Engine = None,
    presets: flags.Presets = None,
    spec: flags.Spec = None,
    out: flags.Out = None,
    storage: flags.Storage = None,
    study: flags.Study = None,
    batch_size: flags.BatchSize = 8,
    workers: flags.Workers = 1,
    cache_dir: flags.CacheDir = None,
    cache_limit: flags.CacheLimit = 20.0,
    no_cache: flags.NoCache = False,
    no_report: flags.NoReport = False,
    bench: TimeIt = False,
    price: Price = None,
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
    from prunetune.study.clock import Clock
    from prunetune.study.workers.crew import Cache, Workers

    clock = Clock(begun=begun())
    at_least("--batch-size", batch_size, 1)
    # Each is a process with a model of its own.
    within("--workers", workers, 1, _MOST_WORKERS)
    within("--cache-limit", cache_limit, 0, 1 << 20)
    said = {
        "model": model,
        "revision": loading.pop("revision"),
        "processor": loading.pop("processor"),
        **budget_of({"keep": keep, "flops": flops, "kv_mib": kv_mib}),
        "objective": objective,
        **promise_of((max_drop, max_gap, min_agreement), cheapest),
        "data": data,
        "held_out": held_out,
        "samples": samples,
        "held_out_samples": held_out_samples,
        "match": match,
        "template_args": template_of(template_arg),
        "allow_remote": allow_remote or None,
        "trials": trials,
        "timeout": timeout,
        "patience": patience,
        "metric": metric,
        "sampler": sampler,
        "seed": seed,
        "trial_pruner": trial_pruner,
        "presets": [] if presets == "none" else optional_names("--preset", presets),
        "space": space_of(scorers, stages, layers, selectors, mass, pixels),
    }
    one_of("--engine", engine, ("transformers", "vllm"))
    wanted = _spec(spec, said)
    if engine == "vllm":
        wanted = _for_vllm(wanted)
    how = {
        "batch_size": batch_size,
        "cache": Cache(cache_dir, int(cache_limit * (1 << 30)), not no_cache),
        "workers": Workers(workers, threads),
    }
    from prunetune.interrupts import heeded

    then = After(not no_report, bench or price is not None, price_named(price))
    names = {"storage": storage, "study_name": study}
    options = {"skip_bad": skip_bad, **loading}
    # SIGTERM is a batch system's warning: it ends a search as Ctrl-C does, resumable.
    with heeded(signal.SIGINT, signal.SIGTERM):
        clock.seconds = wanted.timeout
        result, prepared = _run(wanted, out, names, options, how, then, clock)
    from prunetune.cli.printed.search import report

    report(Output(as_json), result, prepared)


def _spec(file: str | None, said: dict[str, Any]) -> "StudySpec":
    """Return what is searched, from the flags that were given and a file, if one was."""
    from prunetune.spec import StudySpec

    for name in ("sampler", "match", "metric", "objective", "trial_pruner"):
        allowed = get_args(StudySpec.model_fields[name].annotation)
        one_of(f"--{name.replace('_', '-')}", said[name], allowed)
    given = {name: value for name, value in said.items() if value is not None and value != {}}
    return StudySpec.load(file, given) if file else StudySpec.parse(given, origin="search")


def _for_vllm(spec: "StudySpec") -> "StudySpec":
    """Return the spec that searches only configs which run in vLLM, too."""
    from prunetune.models.load import find_model
    from prunetune.space.narrowed import SpaceSpec
    from prunetune.vllm.fits import narrowed

    _, model_type = find_model(spec.model, spec.revision)
    space = narrowed(model_type, spec.space.model_dump(exclude_unset=True))
    return spec.model_copy(update={"space": SpaceSpec.model_validate(space)})


def _run(
    spec: "StudySpec",
    out: str | None,
    names: dict[str, Any],
    options: dict[str, Any],
    how: dict[str, Any],
    then: After,
    clock: "Clock",
) -> "tuple[SearchResult | FrontResult, Prepared]":
    from prunetune.cli._environment import quieten_optuna, set_threads
    from prunetune.study.prepare import prepare
    from prunetune.study.run import LATE_SECONDS, LOADING, run

    quieten_optuna()
    how["workers"] = share_threads(how["workers"])
    set_threads(how["workers"].threads)
    with progress(phases=True) as show:
        show("loading", 0)
        with clock.alarmed(LOADING, LATE_SECONDS):
            prepared = prepare(spec, out=out, **names, **options)
        if prepared.skipped:
            note(f"skipped {len(prepared.skipped)} bad: {'; '.join(prepared.skipped[:3])}")
        logger.info(
            "searching %s at %s on %d samples, %d trials; in %s",
            *(prepared.spec.model, prepared.spec.label, len(prepared.calibration)),
            *(prepared.spec.trials, prepared.out),
        )
        result = run(
            prepared,
            **names,
            **how,
            options=options,
            progress=lambda step: show(step.name, step.done, step.total, step.detail),
            clock=clock,
            told=note,
            requests=timed_requests() if then.bench else 0,
        )
        if then.bench:
            result = replace(result, saving=bench_search(prepared, names, then.price, show, clock))
        if then.report and not clock.over:
            show("report", 0)
            result = replace(result, report=_write_page(prepared, names, show))
        elif then.report:
            note(f"no time for the report; write it with: prunetune report {prepared.out}")
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
