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
  complete trial is as good, the time of the reference included. The loop's trials are those of the
  same sampler and seed without a trial pruner; their values come from the engine's evaluator (the
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import finish
from floor import Floor
from mid import load_mid, mid_samples
from published_loop import PublishedLoop, clock_of

from prunetune.budget import latest_first_layer
from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.models import load_model
from prunetune.search.objective import Evaluator
from prunetune.search.spec import StudySpec
from prunetune.search.study import run_trials
from prunetune.search.trials import config_of

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


def case(name: str, samples: int, keep: float) -> tuple[Any, Any, int]:
    loaded = load_model("tiny") if name == "tiny" else load_mid()
    depth = loaded.model.config.text_config.num_hidden_layers
    data = load_calibration("tiny", samples=samples)[0] if name == "tiny" else mid_samples(samples)
    return loaded, data, min(latest_first_layer(keep, depth), depth - 1)


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    clock = clock_of(options.clock)
    loaded, data, deepest = case(name, options.samples, options.keep)
    start = clock()
    cache = {"cache": folder / "cache", "in_memory": IN_MEMORY}
    evaluator = Evaluator(loaded, data, deepest=deepest, **cache)
    reference = clock() - start
    loop = PublishedLoop(loaded, data, clock)
    floor = Floor(evaluator, clock)
    timed = Timed(evaluator, clock)
    spec = StudySpec(
        model=name, keep=options.keep, trials=3 * options.trials, seed=options.seed, rescored=1
    )
    # The loop's trials: the same sampler and seed, every trial on all samples.
    plain = spec.model_copy(update={"trials": options.trials, "trial_pruner": "none"})
    goal, best = -math.inf, 0
    if not options.per_trial:
        others = run_trials(plain, evaluator, out=folder / "loop").get_trials(deepcopy=False)
        goal, best = min((t.value, t.number) for t in others if t.value is not None)

    spent: list[tuple[float, float, int]] = []
    floors, differences, reached = [], [], []
    state = {"begun": 0.0, "evaluating": 0.0, "samples": 0}

    def after(progress: Any) -> None:
        total = clock() - state["begun"]
        evaluating = timed.seconds - state["evaluating"]
        measured = timed.samples_done - state["samples"]
        spent.append((total, evaluating, measured))
        if not reached and progress.best is not None and progress.best <= goal * (1 + 1e-6):
            reached.append(len(spent))
        if len(spent) <= options.trials:
            compare(progress.trial, measured)
        state.update(begun=clock(), evaluating=timed.seconds, samples=timed.samples_done)

    def compare(number: int, measured: int) -> None:
        from prunetune.search.find import find_study

        trial = find_study(str(folder / "engine")).study.get_trials(deepcopy=False)[number]
        config = config_of(trial)
        floor.measure()
        floors.append((config, measured))
        for k in range(options.loop_samples):
            index = (number * options.loop_samples + k) % len(data)
            gap = loop.gap(config, index)
            if index in trial.intermediate_values:
                differences.append(abs(gap - trial.intermediate_values[index]))

    state["begun"] = clock()
    run_trials(
        spec,
        timed,  # type: ignore[arg-type]
        out=folder / "engine",
        on_progress=after,
        stopped=lambda: len(spent) >= options.trials and (options.per_trial or bool(reached)),
    )
    first = spent[: options.trials]
    per_trial = sum(total for total, _, _ in first) / len(first)
    evaluating = sum(seconds for _, seconds, _ in first)
    least = sum(floor.seconds(config, measured) for config, measured in floors)
    loop_trial = loop.per_sample * len(data)
    until = sum(total for total, _, _ in spent[: reached[0]]) + reference if reached else None
    work = sum(measured for _, _, measured in first) / len(first) / len(data)
    show(name, loop, loop_trial, per_trial, work, reference)
    print(f"  overhead {100 * (1 - evaluating / sum(t for t, _, _ in first)):.2f}% of a trial")
    rates = ", ".join(f"{rows} rows {floor.rate(rows) / 1e9:.0f}" for rows in (128, 512, 2048))
    print(f"  evaluator {evaluating / least:.2f}x the floor ({rates} GFLOP/s)")
    print(f"  largest difference to the loop's gaps {max(differences, default=0.0):.1e}")
    there = f"trial {reached[0]}" if reached else "not"
    if not options.per_trial:
        print(
            f"  loop's best gap {goal:.5f} in trial {best + 1} of {options.trials}; engine: {there}"
        )
    where(evaluator, [config for config, _ in floors[-3:]])
    same_gap = {
        "to_same_gap_speedup": loop_trial * (best + 1) / until if until else 0.0,
        "whole_loop_speedup": loop_trial * options.trials / until if until else 0.0,
    }
    return {
        "per_trial_speedup": loop_trial / per_trial,
        **({} if options.per_trial else same_gap),
        "floor_ratio": evaluating / least,
        "overhead_share": 1 - evaluating / sum(total for total, _, _ in first),
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
    parser.add_argument("--cases", nargs="+", default=["tiny", "mid"], choices=["tiny", "mid"])
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loop-samples", type=int, default=1, help="a trial, on which it is timed")
    parser.add_argument("--per-trial", action="store_true", help="not the time to the same gap")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--quick", action="store_true", help="4 trials of 24 samples, for a look")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always so)")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.trials, options.loop_samples = 24, 4, 1
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            for key, value in measure(name, options, Path(folder)).items():
                found.setdefault(key, {})[name] = round(value, 4)
    finish(found)


if __name__ == "__main__":
    main()
