"""What ``search`` prints when it has ended."""

import shlex
import sys
from typing import TYPE_CHECKING

from prunetune.cli._output import Output, number, percent

if TYPE_CHECKING:
    from prunetune.study.outcome.front_summary import FrontResult, Point
    from prunetune.study.outcome.summary import SearchResult
    from prunetune.study.prepare import Prepared


def report(out: Output, result: "SearchResult | FrontResult", prepared: "Prepared") -> None:
    """Print a result: a table, the verdict and what to do next, or one JSON object."""
    from prunetune.study.outcome.front_summary import FrontResult

    if isinstance(result, FrontResult):
        _print_front(out, result, prepared)
    else:
        _print(out, result)
        out.line(f"next: {_export(prepared)}")
    if result.saving is not None:
        from prunetune.cli.printed.bench import print_saving

        print_saving(out, result.saving)
    if result.report is not None:
        out.line(f"report: {result.report}")
    out.finish({**result.to_dict(), "skipped": len(prepared.skipped)})
    sys.stdout.flush()


def _print(out: Output, result: "SearchResult") -> None:
    from prunetune.study.outcome.summary import table_rows

    heading, *rows = table_rows(result)
    columns = [heading[0] or "held-out", *[f">{title}" for title in heading[1:-1]], heading[-1]]
    out.table(columns, rows, wrap=heading[-1])
    out.line()
    out.line(result.verdict)
    out.line()
    out.line(_counts(result))
    if result.best.pixels is not None:
        out.line(f"  pixels: {result.best.pixels.shown}, before the processor")
    for stage in result.best.stages:
        scorers = " ".join(f"{s.name}{s.weight:+g}" for s in stage.scorers) or "same scores"
        out.line(f"  layer {stage.layer}: keeps {percent(stage.retention)} by {scorers}")
    _print_flops(out, result.best.provenance.flops)
    out.line(f"config: {result.config}")


def _print_flops(out: Output, flops: "dict[str, float] | None") -> None:
    """Say what the tower costs beside the language model: a budget of FLOPs bounds the latter."""
    from prunetune.budget import flops_told

    if flops is not None:
        out.line(flops_told(flops))


def _print_front(out: Output, result: "FrontResult", prepared: "Prepared") -> None:
    from prunetune.budget.bounds import short

    if result.decision is not None:
        _print_decision(out, result, prepared)
        return
    rows = []
    for point in result.points:
        low, high = point.held_out_ci
        rows.append(
            (
                str(point.trial),
                f"{point.cost:.4g}",
                number(point.held_out.gap),
                f"{low:.4f}-{high:.4f}",
                percent(point.held_out.top1_agreement),
                percent(point.held_out.accuracy),
                _beside(point),
            )
        )
    columns = (">trial", f">{result.cost}", ">held-out gap", ">95% interval", ">top-1", ">accuracy")
    out.table((*columns, "against the best baseline"), rows)
    out.line()
    out.line(result.verdict)
    out.line()
    out.line(_counts(result))
    out.line(f"front: {len(result.front)} trials; configs of the above in {prepared.out}/front")
    flag, cost = prepared.spec.kind.replace("_", "-"), short(result.points[-1].cost)
    out.line(f"next: {_export(prepared, f'--{flag}', cost)}")


def _print_decision(out: Output, result: "FrontResult", prepared: "Prepared") -> None:
    decision = result.decision
    assert decision is not None
    shown = decision.promise.shown
    rows = [
        (
            str(one.trial),
            f"{one.cost:.4g}",
            shown(one.loses.mean),
            f"{shown(one.loses.low)} to {shown(one.loses.high)}",
            shown(one.loses.bound),
            "kept" if one.passed else "not kept",
        )
        for one in decision.tested
    ]
    cost = "ms" if decision.promise.cheapest == "ms" else result.cost
    columns = (">trial", f">{cost}", ">loses", ">95% interval", ">at most", "promise")
    out.table(columns, rows)
    out.line()
    out.line(result.verdict)
    out.line()
    out.line(_counts(result))
    knee = next(cost for trial, _, cost in result.front if trial == result.knee)
    out.line(f"front: {len(result.front)} trials; its knee: trial {result.knee} ({knee:.4g})")
    if result.config is not None:
        out.line(f"config: {result.config}")
        out.line(f"next: {_export(prepared)}")


def _beside(point: "Point") -> str:
    """Return what a point is against the best baseline of its cost."""
    best = point.judged.best_baseline
    if best is None or point.judged.outcome == "unknown":
        return "not known"
    return f"{best.outcome} ({best.name})"


def _counts(result: "SearchResult | FrontResult") -> str:
    counts = ", ".join(f"{count} {state}" for state, count in result.trials.items())
    stopped = f"; stopped: {result.stopped}" if result.stopped else ""
    return f"trials: {counts}; {result.seconds:.0f} s{stopped}"


def _export(prepared: "Prepared", *chosen: str) -> str:
    """Return the command that exports a result, quoted for a shell."""
    name = prepared.spec.model.rstrip("/").rpartition("/")[2]
    words = ["prunetune", "export", str(prepared.out), *chosen, "-o", f"{name}.prune.json"]
    return shlex.join(words)
