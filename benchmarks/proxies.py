"""Which proxy orders configs as their accuracy on unseen questions does.

A search minimises a proxy on calibration samples; what counts is accuracy on pictures that it has
not seen. For each budget a pool of configs is made by one search a metric (trials and starts, the
better half and some others), every config is measured by every proxy on the calibration samples and
by accuracy on a fresh set, drawn for this with a generator seed of its own (`--fresh`), so that
held-out data stay unseen. The table has Spearman's rank correlation with that accuracy, over the
pool and over its better half, and the accuracy of the config that each proxy takes for the best.

One JSON line a config is appended to --out; what is there is not measured again.

    python benchmarks/proxies.py                                # three budgets, 100 configs each
    python benchmarks/proxies.py --keeps 0.1 --configs 8 --trials 8
    python benchmarks/proxies.py --model tiny-1 --keeps 0.1 --out tiny-1.jsonl --page=
    python benchmarks/proxies.py --report
"""

import argparse
import statistics
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from common import finish, markdown, write_section
from fresh import fresh
from ledger import Ledger, whose
from searches import evaluators

from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.scores import Scores, image_ids, measure
from prunetune.spec import OWN_TOKENS, StudySpec
from prunetune.study.study import run_trials
from prunetune.study.trials.best import FINISHED, best_complete, known_mean
from prunetune.study.trials.trials import config_of
from training.tiny.kinds import KINDS

METRICS = ("cosine", "kl", "cosine+kl", "kl-answer")
PROXIES = {
    "cosine": lambda row: row["calibration"]["gap"],
    "kl": lambda row: row["calibration"]["kl"],
    "cosine+kl": lambda row: row["calibration"]["gap"] + row["calibration"]["kl"],
    "kl-answer": lambda row: row["calibration"]["kl_answer"],
    "top-1 agreement": lambda row: -row["calibration"]["top1_agreement"],
}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "metric.md"
Row = dict[str, Any]


def pool(keep: float, evaluator: Evaluator, options: argparse.Namespace) -> list[PruningConfig]:
    """Return configs that searches of each metric have come to, better ones first."""
    found: dict[str, tuple[float, PruningConfig]] = {}
    for metric in METRICS:
        about = {"model": options.model, "data": options.data}
        spec = StudySpec(
            keep=keep, seed=options.seed, metric=metric, trials=options.trials, **about
        )
        with tempfile.TemporaryDirectory() as folder:
            study = run_trials(spec, evaluator, out=Path(folder))
            trials = study.get_trials(deepcopy=False, states=FINISHED)
        # Places within their search: metrics have different units.
        best = best_complete(study)
        known = [t for t in trials if t.intermediate_values]
        known.sort(key=lambda t: known_mean(t, best))
        for place, trial in enumerate(known):
            config = config_of(trial)
            key = config.digest()
            found[key] = min(found.get(key, (float(place), config)), (float(place), config), key=_p)
    return [config for _, config in sorted(found.values(), key=_p)]


def _p(entry: tuple[float, PruningConfig]) -> float:
    return entry[0]


def measured(keep: float, options: argparse.Namespace, ledger: Ledger) -> None:
    evaluator, _ = evaluators(keep, options.samples, OWN_TOKENS, options.model, options.data)
    unseen = fresh(evaluator, options.fresh, options.pictures, options.kind)
    done = [row["digest"] for row in ledger.rows() if row["keep"] == keep]
    if len(done) >= options.configs:
        return
    configs = pool(keep, evaluator, options)
    half = options.configs // 2
    rest = configs[half:]
    # The better half of what is wanted, and as many of the others, evenly.
    step = max(1, len(rest) // max(1, options.configs - half))
    for config in [*configs[:half], *rest[::step]][: options.configs]:
        if config.digest() in done:
            continue
        here = measure(evaluator, config, answers=False)
        there = measure(unseen, config)
        row = {
            "keep": keep,
            "unseen": {
                "seed": options.fresh,
                "questions": len(there),
                "pictures": len(set(image_ids(unseen.samples))),
            },
            "digest": config.digest(),
            "config": config.model_dump(mode="json", exclude={"provenance"}),
            "calibration": asdict(Scores.of(here)),
            "fresh": asdict(Scores.of(there)),
            "samples": [
                [round(r.gap, 5), round(r.kl, 5), round(r.kl_answer or 0, 5)] for r in here
            ],
        }
        ledger.add(row)
        print(f"{keep:g}: {row['fresh']['accuracy']:.3f}", flush=True)


def correlation(mine: list[Row], proxy: str) -> float:
    """Return Spearman's rank correlation of a proxy (low is good) with accuracy."""
    from scipy.stats import spearmanr

    pairs = [(-PROXIES[proxy](row), row["fresh"]["accuracy"]) for row in mine]
    return float(spearmanr(*zip(*pairs)).statistic)


def report(ledger: Ledger) -> list[str]:
    found = ledger.rows()
    if not found:
        return ["Nothing has been measured yet."]
    unseen = found[0]["unseen"]
    lines = [
        f"Model `{ledger.model}`, {datetime.now(UTC):%Y-%m-%d}: {len(found)} configs, accuracy on",
        f"a fresh set of the generator's seed {unseen['seed']} ({unseen['questions']} questions on "
        f"{unseen['pictures']} pictures).",
    ]
    for keep in sorted({row["keep"] for row in found}, reverse=True):
        mine = [row for row in found if row["keep"] == keep]
        ranked = sorted(mine, key=lambda row: -row["fresh"]["accuracy"])
        better = ranked[: max(2, len(mine) // 2)]
        table = []
        for proxy, value in PROXIES.items():
            order = sorted(mine, key=value)
            top = statistics.fmean(row["fresh"]["accuracy"] for row in order[:5])
            table.append(
                (
                    f"`{proxy}`",
                    f"{correlation(mine, proxy):.3f}",
                    f"{correlation(better, proxy):.3f}",
                    f"{100 * order[0]['fresh']['accuracy']:.1f}",
                    f"{100 * top:.1f}",
                )
            )
        columns = ("proxy", "all", "better half", "its best", "its best five")
        lines += [
            f"\n### Mean retention {keep:g}: {len(mine)} configs\n",
            *markdown(columns, table),
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1, 0.05])
    parser.add_argument("--configs", type=int, default=100, help="of each budget")
    parser.add_argument("--trials", type=int, default=100, help="of each search that makes a pool")
    parser.add_argument("--seed", type=int, default=100, help="of these searches")
    parser.add_argument("--model", default="tiny", help="the witness")
    parser.add_argument("--data", help="its calibration set; by default the one shipped for it")
    parser.add_argument("--kind", choices=KINDS, help="of the fresh pictures; by default its own")
    parser.add_argument("--fresh", type=int, default=11, help="generator seed of the unseen set")
    parser.add_argument("--pictures", type=int, help="of the unseen set; by default 120")
    parser.add_argument("--samples", type=int, help="a split; by default all")
    parser.add_argument("--out", type=Path, default=Path("proxies.jsonl"))
    parser.add_argument("--page", default=str(PAGE), help="what to write; '' for nothing")
    parser.add_argument("--report", action="store_true", help="only print the table of --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = None if options.report else whose(options.model, options.data, options.samples)
    ledger = Ledger(options.out, about)
    for keep in () if options.report else options.keeps:
        measured(keep, options, ledger)
    lines = report(ledger)
    print("\n".join(lines))
    if options.page:
        write_section(Path(options.page), "proxies", lines)
    finish({"configs": len(ledger.rows()), "out": str(options.out)})


if __name__ == "__main__":
    main()
