"""``diff``: what changed between two configs or trials."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AsJson, Match, ModelName, SkipBad, Threads, at_least, one_of, verb
from prunetune.cli._loading import Loading, prepare_pictures
from prunetune.cli._output import Output, number, percent
from prunetune.cli.progress import progress
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.review.compare.paired import Measured
    from prunetune.review.compare.sides import Side

_SHOWN = {
    "gap": ("gap", number),
    "held_out_gap": ("held-out gap", number),
    "top1_agreement": ("top1_agreement", percent),
    "accuracy": ("accuracy", percent),
    "mean_retention": ("mean retention", percent),
    "flops_ratio": ("prefill FLOPs", percent),
    "kv_ratio": ("visual KV cache", percent),
}
_TARGET = "A config file, STUDY:N (a trial), or a study (its best trial)."


@verb(
    "diff",
    "prunetune diff old.prune.json new.prune.json",
    "prunetune diff studies/tiny-keep0.25:3 tiny.prune.json --measure 32",
)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=_TARGET)],
    b: Annotated[str, typer.Argument(metavar="B", help=_TARGET)],
    trial: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Trial of a study given without :N; twice for A and B."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Of several studies, this one.")
    ] = None,
    measure: Annotated[
        int | None,
        typer.Option(metavar="N", help="Measure both on N calibration samples, pair by pair."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Calibration data.  [default: the study's, or tiny]"),
    ] = None,
    match: Match = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Samples a batch.")] = 16,
    model: ModelName = None,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Say in words and figures what changed from A to B.

    The figures are those of the configs' provenance and of the trials. With --measure both are
    run on the same samples, and each difference comes with its bootstrap 95% interval.
    """
    at_least("--measure", measure, 1)
    at_least("--batch-size", batch_size, 1)
    one_of("--match", match, ("vqa", "exact", "contains"))
    if measure is None and (
        given := _needless(
            data=data, match=match, model=model, skip_bad=skip_bad or None, **loading
        )
    ):
        raise ConfigError(f"{given}: only of use with --measure N; add it")
    from prunetune.review.compare.diff import changes

    one, two = _sides((a, b), trial or [], name)
    found = changes(one.config, two.config)
    out = Output(as_json)
    _print_changes(out, one, two, [change.words for change in found])
    measured, judged = None, None
    if measure is not None:
        from prunetune.cli._environment import set_threads

        set_threads(threads)
        options = {"model": model, **loading}
        spec = one.spec or two.spec
        judged = match or (spec.match if spec else "vqa")
        measured = _measure(one, two, data, measure, batch_size, skip_bad, judged, options)
        _print_measured(out, measured, judged)
    out.finish(
        {
            "a": _described(one),
            "b": _described(two),
            "equal": not found,
            "changes": [vars(change) for change in found],
            "measured": measured and {"match": judged, **_measured_json(measured)},
        }
    )


def _needless(**options: str | bool | None) -> str:
    return ", ".join(
        f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None
    )


def _sides(targets: tuple[str, str], trials: list[int], study: str | None) -> "tuple[Side, Side]":
    from prunetune.cli._environment import quieten_optuna
    from prunetune.review.compare.sides import is_study, read_side, split_trial

    left = list(trials)
    for trial in trials:
        at_least("--trial", trial, 0)
    if any(is_study(target) for target in targets):
        quieten_optuna()
    elif study is not None:
        raise ConfigError(
            f"--study: received {study!r}, but A and B are config files; leave it out"
        )
    sides = []
    for target in targets:
        bare = is_study(target) and split_trial(target)[1] is None
        sides.append(read_side(target, left.pop(0) if bare and left else None, study))
    if left:
        raise ConfigError(
            f"--trial: received {len(trials)} of them, but {len(trials) - len(left)} of A and B "
            "are studies without :N; leave out the rest"
        )
    return sides[0], sides[1]


def _print_changes(out: Output, one: "Side", two: "Side", words: list[str]) -> None:
    out.line(f"A: {one.name}")
    out.line(f"B: {two.name}")
    out.line()
    if not words:
        out.line("A and B prune the same.")
    for text in words:
        out.line(f"- {text}")
    out.line()
    rows = []
    for key, (shown, form) in _SHOWN.items():
        x, y = one.figures.get(key), two.figures.get(key)
        difference = "-" if x is None or y is None else _signed(y - x, form is percent)
        rows.append((shown, form(x), form(y), difference))
    out.table(("figure", ">A", ">B", ">B - A"), rows)
    for letter, side in (("A", one), ("B", two)):
        if side.note:
            out.line(f"{letter} {side.note}")
    if _other_data(one, two):
        out.line("A and B were measured on different calibration data: compare with --measure")


def _signed(value: float, share: bool) -> str:
    return f"{100 * value:+.1f} points" if share else f"{value:+.4f}"


def _other_data(one: "Side", two: "Side") -> bool:
    digests = [side.config.provenance.calibration_digest for side in (one, two)]
    return None not in digests and digests[0] != digests[1]


def _measure(
    one: "Side",
    two: "Side",
    data: str | None,
    count: int,
    batch_size: int,
    skip_bad: bool,
    match: str,
    options: dict[str, Any],
) -> "Measured":
    from prunetune.calibration import load_calibration, without_refused
    from prunetune.models import load_model
    from prunetune.models.embedded import shipped_data
    from prunetune.review.compare.paired import measure_both

    spec = one.spec or two.spec
    seed = spec.seed if spec else one.config.provenance.seed or 0
    ref = one.config.model
    name = options.pop("model") or ref.name
    source = data or (spec.data if spec else None) or shipped_data(name)
    if not name:
        raise ConfigError(f"{one.name}: model.name is empty; say which model with --model")
    if options["revision"] is None and name == ref.name:
        options["revision"] = ref.revision
    prepare_pictures(one.processor, options)
    samples, _ = load_calibration(
        source,
        seed=seed,
        samples=count,
        skip_bad=skip_bad,
        template=spec.template_args if spec else None,
        allow_remote=bool(spec and spec.allow_remote),
    )
    loaded = load_model(name, **options)
    if skip_bad:
        samples = without_refused(loaded.processor, samples)
    with progress() as show:
        return measure_both(
            loaded,
            (one.config, two.config),
            samples,
            batch_size=batch_size,
            seed=seed,
            match=match,
            progress=lambda done, total: show("samples", done, total),
        )


def _print_measured(out: Output, measured: "Measured", match: str) -> None:
    first, second = measured.scores
    out.line()
    judged = "" if first.accuracy is None else f"; answers are judged by --match {match}"
    out.line(f"measured on {first.samples} samples{judged}")
    rows: list[tuple[str, ...]] = []
    for key, (shown, form) in {"gap": _SHOWN["gap"], "kl": ("KL, nats", number), **_SHOWN}.items():
        difference = measured.differences.get(key)
        if difference is None:
            continue
        share = form is percent
        low, high = (_signed(x, share).removesuffix(" points") for x in difference.interval)
        values = form(getattr(first, key)), form(getattr(second, key))
        rows.append((shown, *values, _signed(difference.mean, share), f"{low} to {high}"))
    flops = [percent(x) for x in measured.flops]
    change = _signed(measured.flops[1] - measured.flops[0], True)
    rows.append(("prefill FLOPs", *flops, change, ""))
    out.table(("figure", ">A", ">B", ">B - A", ">95% interval"), rows)
    out.line(measured.verdict)


def _described(side: "Side") -> dict[str, Any]:
    return {
        "name": side.name,
        "digest": side.config.digest(),
        "figures": side.figures,
        "note": side.note,
    }


def _measured_json(measured: "Measured") -> dict[str, Any]:
    return {
        "a": vars(measured.scores[0]) | {"flops_ratio": measured.flops[0]},
        "b": vars(measured.scores[1]) | {"flops_ratio": measured.flops[1]},
        "differences": {
            name: {"mean": d.mean, "interval": list(d.interval)}
            for name, d in measured.differences.items()
        },
        "verdict": measured.verdict,
    }
