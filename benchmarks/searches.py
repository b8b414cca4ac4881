"""Searches on the embedded model: metrics, budgets and seeds against every preset, held out.

What README and docs/metric.md say about quality comes from here. Every search is what
`prunetune search --model tiny --keep K --seed S --metric M --trials N` runs, but that samples are
in seed 0's order for all seeds: references are computed once, and each preset is measured once a
budget.

    python benchmarks/searches.py --metrics cosine kl cosine+kl --keeps 0.25 0.1 --seeds 0 1 2

--parts searches with restricted parts (``space.parts``), to show what a restriction costs; --fresh
measures every winner on fresh pictures, too, beside the best untuned set (fresh.py).

Appends one JSON line a search to --out: what is there is not searched again, so that several
processes can share the work and a killed run loses nothing; --report turns them into a table.
"""

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import finish, name_model
from fresh import compared, fresh
from ledger import Ledger, whose

from prunetune.budget import latest_first_layer, mean_retention
from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.scores import Scores, accuracy, measure
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.presets import preset_names
from prunetune.space.space import Space
from prunetune.spec import OWN_TOKENS, SpaceSpec, StudySpec
from prunetune.study.outcome.selection import choose
from prunetune.study.study import run_trials
from prunetune.study.trials.trials import presets_at


def evaluators(
    keep: float,
    samples: int | None = None,
    own: int = 0,
    model: str = "tiny",
    data: str | None = None,
) -> tuple[Evaluator, Evaluator]:
    loaded = load_model(model)
    depth = loaded.model.config.get_text_config().num_hidden_layers
    calibration, held_out = load_calibration(data or shipped_data(model))
    if samples is not None:
        calibration, held_out = calibration.limit(samples), held_out.limit(samples)
    deepest = max(0, min(latest_first_layer(keep, depth), depth - 1))
    return (
        Evaluator(loaded, calibration, deepest=deepest, own=own),
        Evaluator(loaded, held_out, deepest=1, own=own),
    )


SHOWN = ("gap", "kl", "top1_agreement", "accuracy")


def scores(results: list[Any]) -> dict[str, Any]:
    return asdict(Scores.of(results))


def baselines(keep: float, evaluator: Evaluator, held_out: Evaluator, ledger: Ledger) -> None:
    known = {r["name"] for r in ledger.rows() if r["kind"] == "preset" and r["keep"] == keep}
    spec = StudySpec(keep=keep)
    space = Space(spec.space, keep, evaluator.facts())
    if "unpruned" not in known:
        right = accuracy(held_out.unpruned_correct)
        ledger.add(
            {"kind": "preset", "name": "unpruned", "keep": keep, "accuracy": right, "gap": 0}
        )
    for preset in presets_at([n for n in preset_names() if n not in known], space):
        row = {"kind": "preset", "name": preset.name, "keep": keep, "note": preset.note}
        if preset.config is not None:
            row |= scores(measure(held_out, preset.config))
            row["retention"] = mean_retention(preset.config.stages, space.facts.num_layers)
        ledger.add(row)


def one(spec: StudySpec, evaluator: Evaluator, held_out: Evaluator) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        study = run_trials(spec, evaluator, out=Path(folder))
        winner = choose(study, spec, evaluator)
        trials = study.get_trials(deepcopy=False)
    found = scores(measure(held_out, winner.config))
    return {
        "kind": "search",
        "metric": spec.metric,
        "parts": spec.space.parts,
        "keep": spec.keep,
        "seed": spec.seed,
        "trials": len(trials),
        "evaluations": sum(t.user_attrs.get("samples_used", 0) for t in trials),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "trial": winner.trial,
        "retention": mean_retention(winner.config.stages, winner.config.model.num_layers),
        "calibration_gap": Scores.of(winner.results).gap,
        "config": winner.config.model_dump(mode="json", exclude={"provenance"}),
        **found,
    }


def mean(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.4f}" + (f" ± {spread:.4f}" if len(values) > 1 else "")


def report(rows: list[dict[str, Any]]) -> str:
    """Return the lines as a Markdown table, one a budget."""
    out = []
    for keep in sorted({r["keep"] for r in rows}, reverse=True):
        out += [f"\n### Mean retention {keep:g}\n"]
        out += ["| config | gap | KL | top-1 agreement | accuracy |", "|---|---|---|---|---|"]
        mine = [r for r in rows if r["keep"] == keep]
        searched = [r for r in mine if r["kind"] == "search"]
        for metric, parts in dict.fromkeys(map(_kind, searched)):
            found = [r for r in searched if _kind(r) == (metric, parts)]
            seeds = ", ".join(str(r["seed"]) for r in found)
            only = "" if parts == "all" else f", {parts} parts only"
            cells = [mean([r[k] for r in found]) for k in SHOWN]
            out.append(
                f"| searched by {metric}{only} (seeds {seeds}) | " + " | ".join(cells) + " |"
            )
            for r in found:
                cells = [f"{r[k]:.4f}" for k in SHOWN]
                out.append(f"| … seed {r['seed']} | " + " | ".join(cells) + " |")
        presets = [r for r in mine if r["kind"] == "preset"]
        for r in sorted(presets, key=lambda r: r.get("gap", 9)):
            cells = [f"{r[k]:.4f}" if k in r else "-" for k in SHOWN]
            note = f" ({r['note']})" if r.get("note") else ""
            out.append(f"| {r['name']}{note} | " + " | ".join(cells) + " |")
        out += _on_fresh([r for r in searched if "fresh" in r])
    return "\n".join(out) + "\n"


def _kind(row: dict[str, Any]) -> tuple[str, str]:
    return row["metric"], row.get("parts", "all")


def _on_fresh(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    out = ["", "| on fresh questions | seed | gap | accuracy | untuned set | difference |"]
    out += ["|---|---|---|---|---|---|"]
    for r in found:
        here, (metric, parts) = r["fresh"], _kind(r)
        more = f"{100 * here['more']:+.1f} ± {100 * here['error']:.1f}"
        cells = (
            f"{here['gap']:.4f}",
            f"{here['accuracy']:.4f}",
            f"{here['untuned']['accuracy']:.4f}",
        )
        out.append(f"| {metric}, {parts} | {r['seed']} | {' | '.join(cells)} | {more} |")
    return out


def _searched(ledger: Ledger) -> set[tuple[str, str, float, int]]:
    return {(*_kind(r), r["keep"], r["seed"]) for r in ledger.rows() if r["kind"] == "search"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--metrics", nargs="+", default=["cosine"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--parts", nargs="+", default=["all"], choices=("all", "layer-0", "flash"))
    parser.add_argument("--fresh", type=int, help="generator seed of a fresh set")
    parser.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="measure no presets"
    )
    parser.add_argument("--samples", type=int, help="a split; by default all")
    parser.add_argument("--out", type=Path, default=Path("searches.jsonl"))
    parser.add_argument("--report", action="store_true", help="only print the table of --out")
    arguments = parser.parse_args()
    about = None if arguments.report else whose(arguments.model, samples=arguments.samples)
    ledger = Ledger(arguments.out, about)
    if not arguments.report:
        torch.set_num_threads(1)
        own = OWN_TOKENS if "kl-answer" in arguments.metrics else 0
        for keep in arguments.keeps:
            evaluator, held_out = evaluators(keep, arguments.samples, own, arguments.model)
            unseen = None
            if arguments.fresh is not None:
                unseen = fresh(evaluator, arguments.fresh, arguments.samples)
            if arguments.baselines:
                baselines(keep, evaluator, held_out, ledger)
            for seed, metric, parts in product(arguments.seeds, arguments.metrics, arguments.parts):
                if (metric, parts, keep, seed) in _searched(ledger):
                    continue
                spec = StudySpec(
                    keep=keep,
                    seed=seed,
                    metric=metric,
                    trials=arguments.trials,
                    model=arguments.model,
                    data=shipped_data(arguments.model),
                    space=SpaceSpec(parts=parts),
                )
                row = one(spec, evaluator, held_out)
                if unseen is not None:
                    space = Space(SpaceSpec(), keep, evaluator.facts())
                    config = PruningConfig.parse(row["config"])
                    row["fresh"] = {"seed": arguments.fresh, **compared(config, space, unseen)}
                ledger.add(row)
                print(f"{metric} {parts} {keep} seed {seed}: gap {row['gap']:.4f}", flush=True)
    print(f"{datetime.now(UTC):%Y-%m-%d}\n{report(ledger.rows())}")
    finish({"rows": len(ledger.rows()), "out": str(arguments.out)})


if __name__ == "__main__":
    main()
