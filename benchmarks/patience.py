"""What `--patience` costs and saves, replayed on whole studies: the figures in docs/search.md.

Searches on the embedded model run all their trials; then each is cut where a patience of N would
have ended it. The loss is how much higher the best metric of the cut study is (calibration split).
Studies are kept in --out as they are made, so a killed run goes on.

    python benchmarks/patience.py                          # 2 samplers x 2 budgets x 3 seeds
    python benchmarks/patience.py --samplers tpe --seeds 0 --keeps 0.25
"""

import argparse
import statistics
from collections.abc import Container, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from common import finish, markdown
from optuna.trial import FrozenTrial, TrialState
from searches import evaluators

from prunetune.spec import StudySpec
from prunetune.study.study import run_trials
from prunetune.study.trials.best import best_complete, metric_of, on_plateau


def first(trials: Sequence[FrozenTrial], count: int) -> SimpleNamespace:
    """Return what the rule asks of a study, of the first trials only."""

    def get_trials(
        deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [t for t in trials[:count] if states is None or t.state in states]

    return SimpleNamespace(directions=[None], get_trials=get_trials)


def cut(trials: Sequence[FrozenTrial], patience: int) -> tuple[int, float]:
    """Return after how many trials a patience ends a study, and the loss (0.1: 10% higher)."""
    counts = range(1, len(trials))
    ended = next((n for n in counts if on_plateau(first(trials, n), patience)), len(trials))
    found, best = (best_complete(first(trials, n)) for n in (ended, len(trials)))
    return ended, metric_of(found) / metric_of(best) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", nargs="+", default=["tpe", "tpe-uni"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--patience", nargs="+", type=int, default=[30, 50])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--samples", type=int, help="of the calibration split, for a quick look")
    parser.add_argument("--out", type=Path, default=Path("patience"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    studies: dict[str, list[list[FrozenTrial]]] = {name: [] for name in arguments.samplers}
    for keep in arguments.keeps:
        evaluator, _ = evaluators(keep, arguments.samples)
        for sampler, seed in product(arguments.samplers, arguments.seeds):
            spec = StudySpec(keep=keep, seed=seed, sampler=sampler, trials=arguments.trials)
            study = run_trials(spec, evaluator, out=arguments.out / f"{sampler}-{keep:g}-{seed}")
            studies[sampler].append(study.get_trials(deepcopy=False))
    rows, result = [], {}
    for (sampler, found), patience in product(studies.items(), arguments.patience):
        ended, losses = zip(*(cut(trials, patience) for trials in found))
        middle = statistics.median(losses)
        result[f"{sampler}/{patience}"] = {"trials": ended, "losses": losses}
        counted = len(found), f"{statistics.median(ended):.0f}"
        rows.append(
            (sampler, *map(str, (patience, *counted)), f"{middle:.1%}", f"{max(losses):.1%}")
        )
    columns = ("sampler", "patience", "studies", "median trials", "median loss", "largest loss")
    print("\n".join(markdown(columns, rows)))
    finish(result)


if __name__ == "__main__":
    main()
