"""Which metric a search should minimise, settled by searches: a section of docs/metric.md.

`cosine`, `kl`, `cosine+kl` and `kl-answer` on the embedded model at keep 0.25, 0.1 and 0.05 with
three seeds each; what counts is held-out accuracy, which none of them minimises. Rows are appended
to --out as they are measured (searches.py), so several processes can share the work and a killed
run goes on.

    python benchmarks/metric.py                         # all 36 searches, then the page
    python benchmarks/metric.py --keeps 0.1 --page ''   # one process's part
    python benchmarks/metric.py --report                # only the page, from --out
"""

import argparse
import math
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from common import finish, name_model, write_section
from ledger import Ledger, whose
from searches import baselines, evaluators, mean, one

from prunetune.spec import OWN_TOKENS, StudySpec

METRICS = ("cosine", "kl", "cosine+kl", "kl-answer")
FIGURES = ("gap", "kl", "accuracy")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "metric.md"
Cells = dict[tuple[float, int], dict[str, dict[str, Any]]]


def search(options: argparse.Namespace, ledger: Ledger) -> None:
    known = {(r["metric"], r["keep"], r["seed"]) for r in ledger.rows() if r["kind"] == "search"}
    for keep in options.keeps:
        evaluator, held_out = evaluators(keep, options.samples, model=options.model)
        along = evaluators(keep, options.samples, OWN_TOKENS, options.model)
        baselines(keep, evaluator, held_out, ledger)
        for seed in options.seeds:
            for metric in METRICS:
                if (metric, keep, seed) in known:
                    continue
                spec = StudySpec(keep=keep, seed=seed, metric=metric, trials=options.trials)
                pair = along if spec.own_tokens else (evaluator, held_out)
                row = one(spec, *pair)
                ledger.add(row)
                print(f"{metric} {keep} seed {seed}: accuracy {row['accuracy']:.4f}", flush=True)


def cells_of(found: list[dict[str, Any]]) -> Cells:
    """Return searches by (keep, seed), then metric; only where all metrics were searched."""
    cells: Cells = {}
    for row in found:
        if row["kind"] == "search":
            cells.setdefault((row["keep"], row["seed"]), {})[row["metric"]] = row
    return {key: cell for key, cell in sorted(cells.items()) if set(METRICS) <= set(cell)}


def paired(cells: Cells, metric: str, figure: str) -> tuple[float, float]:
    """Return the mean difference to `cosine` over the cells, and its standard error."""
    differences = [cell[metric][figure] - cell["cosine"][figure] for cell in cells.values()]
    error = math.inf
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error


def conclude(cells: Cells) -> tuple[str, str]:
    """Return the metric that should be the default, and why, by rule from the numbers."""
    best, gain, reasons = "cosine", 0.0, []
    for metric in METRICS[1:]:
        more, error = paired(cells, metric, "accuracy")
        reasons.append(f"`{metric}` {100 * more:+.2f} ± {100 * error:.2f} points")
        if more > 2 * error and more > gain:
            best, gain = metric, more
    why = (
        f"Held-out accuracy against `cosine`, paired over {len(cells)} budgets and seeds (mean ± "
        f"standard error): {'; '.join(reasons)}. "
    )
    if best == "cosine":
        return best, why + "None gains two standard errors, so VFlowOpt's `cosine` stays."
    return best, why + f"`{best}` gains more than two standard errors: it is the better default."


def page(found: list[dict[str, Any]], model: str, trials: int) -> list[str]:
    """Return the section of docs/metric.md, as lines."""
    cells = cells_of(found)
    if not cells:
        return ["Nothing has been measured yet."]
    best, why = conclude(cells)
    seeds = sorted({seed for _, seed in cells})
    out = [
        f"`{model}`, {trials} trials a search, seeds",
        f"{', '.join(map(str, seeds))}, on {datetime.now(UTC):%Y-%m-%d}; figures are held-out,",
        "mean ± standard deviation.",
        "",
        "| mean retention | minimised | gap | KL | accuracy |",
        "|---|---|---|---|---|",
    ]
    for keep in sorted({keep for keep, _ in cells}, reverse=True):
        for metric in METRICS:
            mine = [cell[metric] for (k, _), cell in cells.items() if k == keep]
            columns = " | ".join(mean([row[f] for row in mine]) for f in FIGURES)
            out.append(f"| {keep:g} | `{metric}` | {columns} |")
        for row in found:
            if row["kind"] == "preset" and row["keep"] == keep and row["name"] == "unpruned":
                out.append(f"| {keep:g} | unpruned | 0 | 0 | {row['accuracy']:.4f} |")
    out += ["", f"By the rule below: `{best}`.", ""]
    out += [
        "The rule was fixed before the runs: the metric with the highest held-out accuracy, if it",
        "gains more than two standard errors over `cosine`, paired over budgets and seeds; else",
        "`cosine`.",
        "",
        why,
        "",
        "| minimised | difference in gap | in KL | in accuracy |",
        "|---|---|---|---|",
    ]
    for metric in METRICS[1:]:
        pairs = [paired(cells, metric, figure) for figure in FIGURES]
        columns = " | ".join(f"{more:+.4f} ± {error:.4f}" for more, error in pairs)
        out.append(f"| `{metric}` - `cosine` | {columns} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--samples", type=int, help="a split; by default all")
    parser.add_argument("--out", type=Path, default=Path("metric.jsonl"))
    parser.add_argument("--page", default=str(PAGE), help="what to write; '' for nothing")
    parser.add_argument("--report", action="store_true", help="only write the page from --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = None if options.report else whose(options.model, samples=options.samples)
    ledger = Ledger(options.out, about)
    if not options.report:
        search(options, ledger)
    found = ledger.rows()
    if options.page:
        write_section(Path(options.page), "searches", page(found, ledger.model, options.trials))
    cells = cells_of(found)
    finish({"searches": 3 * len(cells), "default": conclude(cells)[0] if cells else None})


if __name__ == "__main__":
    main()
