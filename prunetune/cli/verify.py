"""``verify``: re-measure a config through the deployment path."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import (
    AllowRemote,
    AsJson,
    Match,
    ModelName,
    SkipBad,
    TemplateArg,
    Threads,
    at_least,
    one_of,
    verb,
)
from prunetune.cli._flags import template_of
from prunetune.cli._loading import (
    Keep,
    Loading,
    Preset,
    model_named,
    prepare_pictures,
    wanted_config,
)
from prunetune.cli._output import Output, number, percent
from prunetune.cli._vllm import ENGINES, check_runs, prompts, verify_there
from prunetune.cli.progress import progress

if TYPE_CHECKING:
    from prunetune.deploy import Figure, SelfTest, SplitScores, Verification


@verb(
    "verify",
    "prunetune verify tiny.prune.json",
    "prunetune verify tiny.prune.json --max-gap 0.05 --json",
    "prunetune verify --preset topv --keep 0.25 --model tiny --samples 16",
    "prunetune verify tiny.prune.json --engine vllm --samples 40",
)
def verify(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="A config file, or --preset.")
    ] = None,
    preset: Preset = None,
    keep: Keep = None,
    model: ModelName = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Calibration data.  [default: tiny]"),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Held-out data, if not a part of --data.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="At most N samples of each split.")
    ] = None,
    held_out_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Of the held-out split.  [default: --samples]")
    ] = None,
    max_gap: Annotated[
        float | None, typer.Option(metavar="X", help="Exit 1 if the gap measured is above X.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Samples a batch.")] = 16,
    self_test: Annotated[
        int, typer.Option(metavar="N", help="Samples of the self-test, 32 at most; 0: none.")
    ] = 4,
    match: Match = None,
    template_arg: TemplateArg = None,
    allow_remote: AllowRemote = False,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="vllm: compare vLLM with transformers instead.")
    ] = "transformers",
    skip_bad: SkipBad = False,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Re-measure a config as a deployment runs it: gap, agreement, accuracy, token counts.

    The model is the config's own unless --model names another, e.g. a fine-tune. The gap that
    --max-gap bounds is the mean over the calibration split. A self-test compares decoding with the
    cache and without, a batch and each prompt alone, pruned and masked: exit 1 where they part.
    """
    from prunetune.errors import ConfigError

    if engine == "vllm" and config is None:
        raise ConfigError("--engine vllm: received --preset, allowed a config file; give CONFIG")
    pruning = wanted_config(config, preset, keep, model, loading)
    at_least("--max-gap", max_gap, 0)
    at_least("--batch-size", batch_size, 1)
    at_least("--samples", samples, 1)
    at_least("--held-out-samples", held_out_samples, 1)
    at_least("--self-test", self_test, 0)
    if self_test > 32:
        raise ConfigError(f"--self-test: received {self_test}, allowed 0 to 32")
    one_of("--match", match, ("vqa", "exact", "contains"))
    template = template_of(template_arg)
    one_of("--engine", engine, ENGINES)
    shown = config or f"preset {preset}"
    if engine == "vllm":
        if max_gap is not None:
            raise ConfigError(
                f"--max-gap: received {max_gap:g} with --engine vllm, which gives no hidden states "
                "to measure a gap on; leave it out, or verify in transformers"
            )
        check_runs(shown, pruning)
    name = model_named(shown, pruning.model, model, loading)
    prepare_pictures(pruning.provenance.processor, loading)
    from prunetune.cli._environment import set_threads
    from prunetune.deploy import load_splits
    from prunetune.deploy import self_test as compare
    from prunetune.deploy import verify as measure
    from prunetune.models import load_model
    from prunetune.models.embedded import shipped_data

    set_threads(threads)
    # Only the processor can tell what it refuses.
    first = load_model(name, **loading) if skip_bad else None
    splits = load_splits(
        pruning,
        data or shipped_data(name),
        held_out=held_out,
        samples=samples,
        held_out_samples=held_out_samples,
        skip_bad=skip_bad,
        processor=first and first.processor,
        template=template,
        allow_remote=allow_remote,
    )
    if engine == "vllm":
        more = held_out is not None or held_out_samples is not None
        asked = prompts(splits, held_out=more)
        out = Output(as_json)
        return verify_there(out, shown, pruning, name, asked, loading, match or "vqa")
    if max_gap is not None and data is None and samples is None and not splits.same:
        raise ConfigError(
            f"--max-gap: {shown} was not calibrated on the shipped set {shipped_data(name)!r}, "
            "so its gap there says nothing; name the data with --data"
        )
    loaded = first or load_model(name, **loading)
    total = len(splits.calibration) + len(splits.held_out or ())
    count = min(self_test, len(splits.calibration))
    with progress() as show:
        same = count and compare(
            pruning,
            loaded,
            splits.calibration,
            samples=count,
            progress=lambda done: show("self-test", done, count),
        )
        result = measure(
            pruning,
            loaded,
            splits,
            batch_size=batch_size,
            match=match or "vqa",
            progress=lambda done: show("samples", done, total),
        )
    within = None if max_gap is None else result.calibration.gap <= max_gap
    passed = result.counts_hold and within is not False and (not same or same.passed)
    skipped = splits.calibration.skipped + (splits.held_out.skipped if splits.held_out else 0)
    out = Output(as_json)
    _print(out, result, max_gap, within)
    if same:
        _print_self_test(out, same)
    out.finish(
        {
            "config": config,
            "preset": preset,
            "model": loaded.name,
            "gap": result.calibration.gap,
            "max_gap": max_gap,
            "within_max_gap": within,
            "passed": passed,
            "promised_gap": result.promised_gap,
            "difference": result.difference,
            "tolerance": result.tolerance,
            "reproduced": result.reproduced,
            "same_weights": result.same_weights,
            "mean_retention": result.calibration.mean_retention,
            "promised_mean_retention": pruning.provenance.mean_retention,
            "counts_hold": result.counts_hold,
            "self_test": asdict(same) if same else None,
            "calibration": vars(result.calibration),
            "held_out": result.held_out and vars(result.held_out),
            "layers": [vars(layer) for layer in result.layers],
            "skipped": skipped,
            "match": match or "vqa",
        }
    )
    if not passed:
        raise typer.Exit(1)


def _print(out: Output, result: "Verification", max_gap: float | None, within: bool | None) -> None:
    rows = [_row("calibration", result.calibration)]
    if result.held_out is not None:
        rows.append(_row("held-out", result.held_out))
    out.table(
        ("split", ">samples", ">gap", ">KL", ">top-1", ">accuracy", ">unpruned", ">retention"), rows
    )
    out.line()
    out.table((">layers", ">image tokens", ">promised", ">worst off", ">retention"), _spans(result))
    out.line()
    counts = "hold in every sample and layer" if result.counts_hold else "DO NOT HOLD"
    out.line(f"token counts: {counts}")
    if result.reproduced is None:
        out.line(f"gap of the provenance: not compared: {result.reason}")
    else:
        word = "reproduced" if result.reproduced else "NOT reproduced"
        exactly = f"to {result.tolerance:.0e} (off by {result.difference:+.1e})"
        out.line(f"gap of the provenance: {word} {exactly}")
    if result.same_weights is not None:
        word = "the same" if result.same_weights else "OTHERS, or in another number format"
        out.line(f"weights of the provenance: {word}")
    if within is not None:
        sign = "at most" if within else "ABOVE"
        out.line(f"gap {result.calibration.gap:.6f} is {sign} --max-gap {max_gap:g}")


def _print_self_test(out: Output, found: "SelfTest") -> None:
    rows = [
        _figure("decoding with the cache against without", found.cache),
        _figure("a batch against each prompt alone", found.batch),
        _figure("pruned against masked", found.masked),
        _figure(f"scores where kept tokens differ: {found.parted} runs", found.kept),
    ]
    out.line()
    out.table(
        (f"self-test, {found.samples} prompts", ">apart", ">unpruned", ">tolerance", "outcome"),
        rows,
    )


def _figure(name: str, figure: "Figure") -> tuple[str, ...]:
    apart, unpruned = (
        "-" if value is None else f"{value:.1e}" for value in (figure.difference, figure.unpruned)
    )
    outcome = "the same" if figure.passed else "DIFFER"
    if figure.reason:
        outcome = f"{'not compared' if figure.passed else 'DIFFER; in part not compared'}: "
        outcome += figure.reason
    return name, apart, unpruned, f"{figure.tolerance:.1e}", outcome


def _row(name: str, scores: "SplitScores") -> tuple[str, ...]:
    return (
        name,
        str(scores.samples),
        number(scores.gap, 6),
        number(scores.kl),
        percent(scores.top1_agreement),
        percent(scores.accuracy),
        percent(scores.unpruned_accuracy),
        number(scores.mean_retention),
    )


def _spans(result: "Verification") -> list[tuple[str, ...]]:
    """Return one row for each run of layers with the same retention."""
    runs: list[list[Any]] = []
    for layer in result.layers:
        if runs and runs[-1][0].retention == layer.retention:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [
        (
            f"{run[0].layer}-{run[-1].layer}" if len(run) > 1 else str(run[0].layer),
            f"{run[0].tokens:.1f}",
            f"{run[0].promised:.1f}",
            f"{max(layer.worst for layer in run):.2f}",
            percent(run[0].retention),
        )
        for run in runs
    ]
