"""Which sampler a search should use, settled by measurement on the embedded model.

tpe, gp, cmaes and qmc; the first three also alone, without points near the best ones (`/0`), and
after a start from a Sobol sequence (`+qmc`), at three budgets and several seeds, with 100 and 300
trials. A search of 300 also tells what it had found after 100: trials are the same up to there.
Trials differ in what they take, so the table has both: the best after N trials, and the best at the
seconds that the fastest sampler's last trial took. What counts is the metric on all calibration
samples (choosing a default is no reason to look at held-out data); `--held-out` measures the winner
there, too.

Every search runs in a process of its own with one thread. One JSON line a search is appended to
--out; what is there is not searched again, so a killed run goes on and several can share the work.

    python benchmarks/samplers.py --keeps 0.1 --seeds 0 1 2 --trials 60
    python benchmarks/samplers.py --report
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import finish, markdown, name_model
from ledger import Ledger, whose
from patience import first
from searches import evaluators, scores

from prunetune.measure.scores import measure
from prunetune.spec import StudySpec
from prunetune.study.outcome.selection import choose
from prunetune.study.study import run_trials
from prunetune.study.trials.best import FINISHED, best_complete, metric_of

LEARNING = ("tpe", "gp", "cmaes")
SAMPLERS = (*(f"{name}{how}" for how in ("", "/0", "+qmc") for name in LEARNING), "qmc")
Row = dict[str, Any]


def one(options: argparse.Namespace, sampler: str, keep: float, seed: int) -> Row:
    """Run one search and return its line."""
    torch.set_num_threads(1)
    evaluator, held_out = evaluators(keep, options.samples, model=options.model)
    rest, _, start = sampler.partition("+")
    name, _, share = rest.partition("/")
    refined = {"refine": float(share)} if share else {}
    spec = StudySpec(
        **refined,
        keep=keep,
        seed=seed,
        trials=options.trials,
        metric=options.metric,
        sampler=name,
        start=start or "random",
    )
    seconds, begun = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:

        def after(_: Any) -> None:
            seconds.append(time.perf_counter() - begun)

        study = run_trials(spec, evaluator, out=Path(folder), on_progress=after)
        winner = choose(study, spec, evaluator)
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    found = (best_complete(first(trials, count)) for count in range(1, len(trials) + 1))
    row = {
        "sampler": sampler,
        "keep": keep,
        "seed": seed,
        "trials": options.trials,
        "metric": options.metric,
        "best": [None if best is None else round(metric_of(best), 6) for best in found],
        "seconds": [round(value, 2) for value in seconds],
        "winner": winner.trial,
        "config": winner.config.model_dump(mode="json", exclude={"provenance"}),
    }
    if options.held_out:
        row["held_out"] = scores(measure(held_out, winner.config))
    return row


def wanted(options: argparse.Namespace, ledger: Ledger) -> Iterator[tuple[str, float, int]]:
    """Yield the searches that --out does not have yet."""
    for keep, seed, sampler in product(options.keeps, options.seeds, options.samplers):
        key = {"sampler": sampler, "keep": keep, "seed": seed, "metric": options.metric}
        # Looked up each time: other processes write there, too.
        if not any(
            key.items() <= row.items() and row["trials"] >= options.trials for row in ledger.rows()
        ):
            yield sampler, keep, seed


def in_process(options: argparse.Namespace, sampler: str, keep: float, seed: int) -> Row:
    """Run one search in a process of its own, and return its line."""
    words = ["--one", sampler, str(keep), str(seed), "--trials", str(options.trials)]
    words += ["--metric", options.metric, "--model", options.model]
    words += ["--samples", str(options.samples)] if options.samples else []
    words += ["--held-out"] if options.held_out else []
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{sampler} at {keep:g}, seed {seed}: {done.stderr[-2000:]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def at(row: Row, trials: int | None = None, seconds: float | None = None) -> float | None:
    """Return the best metric of a search after some trials, or after some seconds."""
    count = trials or sum(value <= (seconds or 0.0) for value in row["seconds"])
    value: float | None = row["best"][min(count, len(row["best"])) - 1] if count else None
    return value


def report(found: list[Row], counts: list[int]) -> str:
    """Return a table a budget: mean and spread over seeds, after trials and at equal time."""
    lines: list[str] = []
    for keep in sorted({row["keep"] for row in found}, reverse=True):
        mine = [row for row in found if row["keep"] == keep]
        reached = [n for n in counts if any(len(row["best"]) >= n for row in mine)] or [
            max(len(row["best"]) for row in mine)
        ]
        columns = ["sampler", "seeds", *(f"after {n} trials" for n in reached)]
        quickest = {
            n: min(row["seconds"][n - 1] for row in mine if len(row["seconds"]) >= n)
            for n in reached
        }
        columns += [f"after {quickest[n]:.0f} s" for n in reached] + ["seconds"]
        table = []
        for sampler in dict.fromkeys(row["sampler"] for row in mine):
            own = [row for row in mine if row["sampler"] == sampler]
            cells = [shown([at(r, trials=n) for r in own if len(r["best"]) >= n]) for n in reached]
            cells += [shown([at(r, seconds=quickest[n]) for r in own]) for n in reached]
            took = statistics.fmean(row["seconds"][-1] for row in own)
            table.append((sampler, str(len(own)), *cells, f"{took:.0f}"))
        lines += [f"\n### Mean retention {keep:g}\n", *markdown(columns, table)]
    return "\n".join(lines)


def shown(values: list[float | None]) -> str:
    """Return mean and standard deviation; a dash where a search had nothing by then."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    spread = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--at", nargs="+", type=int, default=[100, 300], help="trials to report at")
    parser.add_argument("--metric", default="cosine")
    parser.add_argument("--samples", type=int, help="a split; by default all")
    parser.add_argument("--held-out", action="store_true", help="measure winners there, too")
    parser.add_argument("--out", type=Path, default=Path("samplers.jsonl"))
    parser.add_argument("--report", action="store_true", help="only print the table of --out")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sampler, keep, seed = options.one
        finish(one(options, sampler, float(keep), int(seed)))
        return
    about = None if options.report else whose(options.model, samples=options.samples)
    ledger = Ledger(options.out, about)
    for search in () if options.report else wanted(options, ledger):
        row = in_process(options, *search)
        ledger.add(row)
        print(f"{search}: {row['best'][-1]} in {row['seconds'][-1]:.0f} s", flush=True)
    found = ledger.rows()
    print(f"Model `{ledger.model}`.")
    print(report(found, options.at))
    finish({"searches": len(found), "out": str(options.out)})


if __name__ == "__main__":
    main()
