"""What a search costs, against VFlowOpt's published loop in the same space: time, floor, overhead.

(a) `tiny`, the embedded model; (b) `mid`, a random LLaVA-NeXT of 24 layers, d=512, 1,479 image
tokens. One thread. By default the paper's 50 trials at its smallest budget, a tenth of the tokens,
on 160 samples, as the embedded set has: what a trial costs depends on both. That takes over an
hour; --per-trial a third of it. After every trial of the engine the loop measures a sample under
the same config, and the matrix rate is measured too: a slow minute hits all of them alike.

- `per_trial_speedup`: time of a trial of the loop (seconds a sample x samples: extrapolated from
  the samples that were measured) over the mean time of a trial of the engine, everything but the
  reference in it: sampler, storage, trial pruner.
- `to_same_gap_speedup`: the loop's time until its best trial has ended over the engine's until a
  complete trial is as good, the time of the reference included. The loop searches as published: a
  Gaussian process after uniform random points, no presets; with `--loop engine` it has the
  engine's own sampler, presets and seed. Its values come from the engine's evaluator (the
  difference to the loop's own is printed).
- `whole_loop_speedup`: the same, but the loop's time for all its trials: it does not stop at its
  best one, as it cannot know.
- `floor_ratio`: time in the evaluator over the suffix's FLOPs at the measured matrix rate.
- `overhead_share`: time of a trial outside of the evaluator.

    python benchmarks/search_cost.py --json [--cases tiny mid] [--keep 0.1] [--trials 50] [--quick]
"""

import argparse
import cProfile
import math
import pstats
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from common import finish
from floor import Floor
from mid import load_mid, mid_samples
from published_loop import PublishedLoop, clock_of, published_search

from prunetune.budget import latest_first_layer
from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.space.space import Space
from prunetune.spec import StudySpec
from prunetune.study.find import find_study
from prunetune.study.study import run_trials
from prunetune.study.trials.trials import config_of

IN_MEMORY = 512 << 20


class Timed:
    """An evaluator that knows how long it took, and how many samples it measured."""

    def __init__(self, inner: Evaluator, clock: Callable[[], float]) -> None:
        self._inner, self._clock = inner, clock
        self.seconds, self.samples_done = 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def evaluate(self, config: PruningConfig, *, answers: bool = True) -> Iterator[Any]:
        """Yield what the wrapped evaluator yields."""
        batches = self._inner.evaluate(config, answers=answers)
        while True:
            start = self._clock()
            batch = next(batches, None)
            self.seconds += self._clock() - start
            if batch is None:
                return
            self.samples_done += len(batch)
            yield batch


EMBEDDED = ("tiny", "tiny-1")


def case(name: str, samples: int, keep: float) -> tuple[Any, Any, int]:
    ours = name in EMBEDDED
    loaded = load_model(name) if ours else load_mid()
    depth = loaded.model.config.text_config.num_hidden_layers
    data = (
        load_calibration(shipped_data(name), samples=samples)[0] if ours else mid_samples(samples)
    )
    return loaded, data, min(latest_first_layer(keep, depth), depth - 1)


class Engine:
    """The engine's trials; after each the loop measures a sample under the same config.

    Attributes:
        spent: Of each trial its seconds, those of them in the evaluator, and samples measured.
        floors: Of each trial its config and samples measured.
        differences: Between the loop's gaps and the engine's.
        reached: Trials until a complete one was as good as the goal; None before.
    """

    def __init__(
        self,
        spec: StudySpec,
        evaluator: Evaluator,
        loop: PublishedLoop,
        options: argparse.Namespace,
    ) -> None:
        self._spec, self._loop, self._options = spec, loop, options
        self._clock = clock_of(options.clock)
        self._timed = Timed(evaluator, self._clock)
        self.floor = Floor(evaluator, self._clock)
        self.spent: list[tuple[float, float, int]] = []
        self.floors: list[tuple[PruningConfig, int]] = []
        self.differences: list[float] = []
        self.reached: int | None = None

    def run(self, folder: Path, goal: float) -> None:
        """Run the asked number of trials, and on until the goal is reached."""
        begun = evaluating = 0.0
        samples = 0

        def after(progress: Any) -> None:
            nonlocal begun, evaluating, samples
            total, timed = self._clock() - begun, self._timed
            measured = timed.samples_done - samples
            self.spent.append((total, timed.seconds - evaluating, measured))
            best = math.inf if progress.best is None else progress.best
            if self.reached is None and best <= goal * (1 + 1e-6):
                self.reached = len(self.spent)
            if len(self.spent) <= self._options.trials:
                self._compare(folder, progress.trial, measured)
            begun, evaluating, samples = self._clock(), timed.seconds, timed.samples_done

        def stopped() -> bool:
            done = len(self.spent) >= self._options.trials
            return done and (goal == -math.inf or self.reached is not None)

        begun = self._clock()
        run_trials(
            self._spec,
            self._timed,  # type: ignore[arg-type]
            out=folder,
            on_progress=after,
            stopped=stopped,
        )

    def _compare(self, folder: Path, number: int, measured: int) -> None:
        trial = find_study(str(folder)).study.get_trials(deepcopy=False)[number]
        config = config_of(trial)
        self.floor.measure()
        self.floors.append((config, measured))
        count = self._options.loop_samples
        for index in range(number * count, (number + 1) * count):
            gap = self._loop.gap(config, index)
            stored = trial.intermediate_values.get(index % self._options.samples)
            if stored is not None:
                self.differences.append(abs(gap - stored))


def goal_of(
    options: argparse.Namespace, spec: StudySpec, evaluator: Evaluator, out: Path
) -> tuple[float, int]:
    """Return the least gap of the loop's trials, and the trials it took to find it."""
    if options.per_trial:
        return -math.inf, 0
    if options.loop == "published":
        space = Space.of(spec, evaluator.facts())
        gaps = published_search(space, evaluator, options.trials, options.seed)
    else:
        plain = spec.model_copy(update={"trials": options.trials, "trial_pruner": "none"})
        trials = run_trials(plain, evaluator, out=out).get_trials(deepcopy=False)
        gaps = [math.inf if t.value is None else t.value for t in trials]
    return min(gaps), gaps.index(min(gaps)) + 1


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    clock = clock_of(options.clock)
    loaded, data, deepest = case(name, options.samples, options.keep)
    start = clock()
    evaluator = Evaluator(
        loaded, data, deepest=deepest, cache=folder / "cache", in_memory=IN_MEMORY
    )
    reference = clock() - start
    spec = StudySpec(
        model=name, keep=options.keep, trials=3 * options.trials, seed=options.seed, rescored=1
    )
    goal, best = goal_of(options, spec, evaluator, folder / "loop")
    loop = PublishedLoop(loaded, data, clock)
    engine = Engine(spec, evaluator, loop, options)
    engine.run(folder / "engine", goal)

    first = engine.spent[: options.trials]
    total, evaluating, measured = (sum(column) for column in zip(*first))
    floor = sum(engine.floor.seconds(config, samples) for config, samples in engine.floors)
    trial, loop_trial = total / len(first), loop.per_sample * len(data)
    show(name, loop, loop_trial, trial, measured / len(first) / len(data), reference)
    rates = ", ".join(
        f"{rows} rows {engine.floor.rate(rows) / 1e9:.0f}" for rows in (128, 512, 2048)
    )
    print(f"  overhead {100 * (1 - evaluating / total):.2f}% of a trial")
    print(f"  evaluator {evaluating / floor:.2f}x the floor ({rates} GFLOP/s)")
    print(f"  largest difference to the loop's gaps {max(engine.differences, default=0.0):.1e}")
    where(evaluator, [config for config, _ in engine.floors[-3:]])
    same_gap: dict[str, float] = {}
    if not options.per_trial:
        spent = [seconds for seconds, _, _ in engine.spent]
        there = engine.reached
        until = reference + sum(spent[:there]) if there else math.inf
        print(f"  the loop's least gap: {goal:.5f}, in trial {best} of {options.trials}")
        print(f"  the engine has it after {f'{there} trials' if there else 'none of its trials'}")
        same_gap = {
            "to_same_gap_speedup": loop_trial * best / until,
            "whole_loop_speedup": loop_trial * options.trials / until,
        }
    return {
        "per_trial_speedup": loop_trial / trial,
        **same_gap,
        "floor_ratio": evaluating / floor,
        "overhead_share": 1 - evaluating / total,
    }


def show(
    name: str, loop: PublishedLoop, trial: float, engine: float, work: float, reference: float
) -> None:
    parts = {part: seconds / loop.passes for part, seconds in loop.seconds.items()}
    print(f"{name}: the loop takes {trial:.1f} s a trial, extrapolated from {loop.passes} samples:")
    print(f"  {parts['unpruned']:.3f} s unpruned and {parts['pruned']:.3f} s pruned a sample")
    print(
        f"  the engine takes {engine:.2f} s a trial ({trial / engine:.1f}x less) on {work:.0%} of"
    )
    print(f"  the samples (trial pruner); the reference took {reference:.1f} s, once")


def where(evaluator: Evaluator, configs: list[PruningConfig]) -> None:
    """Print where the evaluator's time goes."""
    profile = cProfile.Profile()
    profile.enable()
    for config in configs:
        next(evaluator.evaluate(config, answers=False))
    profile.disable()
    stats: Any = pstats.Stats(profile)
    own = {"linear": "matrix products", "scaled_dot_product_attention": "attention products"}
    whole = {
        "apply_rotary_pos_emb": "rotary embedding",
        "choose": "scoring and choosing",
        "last_query_row": "last-query rows",
        "get": "reading references",
        "collate": "collating",
        "compare": "comparing",
    }
    shares: dict[str, float] = {}
    for (file, _, function), (_, _, mine, cumulative, _) in stats.stats.items():
        name = function.split()[-1].rstrip(">").split(".")[-1]
        if "built-in" in function and name in own:
            shares[own[name]] = shares.get(own[name], 0.0) + mine
        elif function in whole and ("modeling" in file or "prunetune" in file):
            shares[whole[function]] = shares.get(whole[function], 0.0) + cumulative
    shares["norms, activations, residuals, Python"] = stats.total_tt - sum(shares.values())
    total = stats.total_tt
    for name, seconds in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  {100 * seconds / total:5.1f}%  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["tiny", "mid"], choices=[*EMBEDDED, "mid"])
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loop-samples", type=int, default=1, help="a trial, on which it is timed")
    parser.add_argument("--loop", choices=["published", "engine"], default="published")
    parser.add_argument("--per-trial", action="store_true", help="not the time to the same gap")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--quick", action="store_true", help="4 trials of 24 samples, for a look")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always so)")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.trials, options.loop_samples = 24, 4, 1
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    found: dict[str, dict[str, float]] = {}
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            for key, value in measure(name, options, Path(folder)).items():
                found.setdefault(key, {})[name] = round(value, 4)
    finish(found)


if __name__ == "__main__":
    main()
