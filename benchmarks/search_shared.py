"""What questions about one picture save by sharing its pruned prefix: trials and whole searches.

On `tiny`, four questions a picture, and on `mid`, one a picture, where nothing can be shared. The
reference, the presets measured on all samples, their first look alone, and a search are each timed
shared and unshared in turn, so that a slow minute hits both. With `--shared` or `--unshared` only
that one runs. Ratios are unshared over shared: above 1, sharing is faster.

    python benchmarks/search_shared.py --json [--cases tiny mid] [--keeps 0.25 0.1] [--trials 50]
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import torch
from common import finish
from published_loop import clock_of
from search_cost import EMBEDDED, case

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.measure import continued
from prunetune.measure.evaluator import Evaluator
from prunetune.presets import load_preset
from prunetune.spec import StudySpec
from prunetune.study.study import run_trials
from prunetune.study.trials.trials import config_of

PRESETS = ("fastervlm", "vflowopt", "topv")


def presets(evaluator: Evaluator, keep: float) -> dict[str, PruningConfig]:
    facts = evaluator.facts()
    found = {}
    for name in PRESETS:
        try:
            kind, layers = facts.model_type, facts.num_layers
            found[name], _ = load_preset(name, model_type=kind, num_layers=layers, keep=keep)
        except ConfigError as error:
            print(f"  {name} is left out: {error}")
    return found


def trial(evaluator: Evaluator, config: PruningConfig, *, first: bool) -> list[Any]:
    results = []
    for batch in evaluator.evaluate(config, answers=False):
        results += [result for _, result in batch]
        if first:
            break
    return results


def timed(
    evaluator: Evaluator, modes: list[bool], rounds: int, clock: Callable[[], float], run: Any
) -> dict[bool, float]:
    """Return the median seconds of ``run`` by whether prefixes are shared, taken in turn."""
    spent: dict[bool, list[float]] = {mode: [] for mode in modes}
    for number in range(rounds + 1):
        for mode in modes:
            evaluator.shares = mode
            start = clock()
            run()
            # The first round fills memos.
            if number or rounds == 0:
                spent[mode].append(clock() - start)
    return {mode: median(seconds) for mode, seconds in spent.items()}


def search(evaluator: Evaluator, spec: StudySpec, clock: Callable[[], float]) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        trials = run_trials(spec, evaluator, out=Path(folder)).get_trials(deepcopy=False)
        seconds = clock() - start
    asked = sum(config_of(t).prompt_dependent for t in trials if "config" in t.user_attrs)
    best = min(t.value for t in trials if t.value is not None)
    samples = sum(t.user_attrs.get("evaluations", 0) for t in trials)
    return seconds, f"best {best:.5f}, {samples} samples, {asked} trials read the question"


def reference(name: str, options: argparse.Namespace, modes: list[bool]) -> dict[bool, float]:
    clock, shares = clock_of(options.clock), continued.continues
    seconds = {}
    for mode in modes:
        loaded, data, deepest = case(name, options.samples, min(options.keeps))
        if not mode:
            continued.continues = lambda *given: False
        try:
            start = clock()
            Evaluator(loaded, data, deepest=deepest)
            seconds[mode] = clock() - start
        finally:
            continued.continues = shares
    return seconds


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    clock = clock_of(options.clock)
    modes = [mode for mode in (True, False) if options.only in (None, mode)]
    found: dict[str, float] = {}

    def note(what: str, seconds: dict[bool, float]) -> None:
        words = ", ".join(f"{'' if m else 'un'}shared {s:.2f} s" for m, s in seconds.items())
        ratio = seconds[False] / seconds[True] if len(seconds) == 2 else 0.0
        print(f"{name} {what}: {words}" + (f", ratio {ratio:.2f}" if ratio else ""))
        found[f"{name} {what}"] = round(ratio, 3)

    note("reference", reference(name, options, modes))
    loaded, data, deepest = case(name, options.samples, min(options.keeps))
    evaluator = Evaluator(loaded, data, deepest=deepest)
    for keep in options.keeps:
        for preset, config in presets(evaluator, keep).items():
            for first, what in ((False, "trial"), (True, "first look")):

                def run(config: PruningConfig = config, first: bool = first) -> None:
                    trial(evaluator, config, first=first)

                spent = timed(evaluator, modes, options.rounds, clock, run)
                note(f"{preset} at {keep:g}, {what}", spent)
        if not options.trials:
            continue
        spec = StudySpec(model=name, keep=keep, trials=options.trials, rescored=1)
        seconds: dict[bool, float] = {}
        for mode in modes:
            evaluator.shares = mode
            seconds[mode], said = search(evaluator, spec, clock)
            print(f"  {'' if mode else 'un'}shared: {said}")
        note(f"search at {keep:g}", seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["tiny", "mid"], choices=[*EMBEDDED, "mid"])
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1])
    parser.add_argument("--rounds", type=int, default=3, help="of each trial, after one that warms")
    parser.add_argument("--trials", type=int, default=50, help="of a search; 0: none")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--shared", dest="only", action="store_true", default=None)
    only.add_argument("--unshared", dest="only", action="store_false")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always so)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    found: dict[str, float] = {}
    for name in options.cases:
        found |= measure(name, options)
    finish(found)


if __name__ == "__main__":
    main()
