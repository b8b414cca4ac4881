"""VFlowOpt's published search loop, plainly: what `search_cost.py` compares with.

As in the paper's release (arXiv 2508.05211): one sample at a time, in every trial
an unpruned and a pruned `generate`-style pass, each from the pixels on through all layers, with a
cache, and nothing of it kept; no trial is stopped early. Pictures and texts are prepared once,
outside of what is timed, and the pruned pass runs under `prunetune.apply`, which is cheaper than
what the release does: both favour the loop. Its optimiser is the paper's, a Gaussian process with
expected improvement after uniform random points.
"""

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import optuna
import torch

import prunetune
from prunetune.calibration import CalibrationSet, encode
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.space.space import Space

# Of the release's 300 calls 27 are random; of the paper's 50 no number is given.
RANDOM = 10


class PublishedLoop:
    """The inner loop of a trial, timed.

    Attributes:
        seconds: By ``unpruned`` and ``pruned``.
        passes: Samples that were measured so far.
    """

    def __init__(self, loaded: Any, samples: CalibrationSet, clock: Callable[[], float]) -> None:
        self._model = loaded.model
        self._inputs = [encode(loaded.processor, [sample]) for sample in samples]
        self._clock = clock
        self.seconds = {"unpruned": 0.0, "pruned": 0.0}
        self.passes = 0

    @property
    def per_sample(self) -> float:
        """Seconds a sample takes in a trial."""
        return sum(self.seconds.values()) / self.passes

    def gap(self, config: PruningConfig, index: int) -> float:
        """Return 1 - cosine of the last prompt token's final states on one sample."""
        inputs = self._inputs[index % len(self._inputs)]
        before = self._timed("unpruned", lambda: self._last_state(inputs))

        def pruned() -> torch.Tensor:
            with prunetune.apply(self._model, config):
                return self._last_state(inputs)

        after = self._timed("pruned", pruned)
        self.passes += 1
        return 1 - float(torch.cosine_similarity(before.double(), after.double(), dim=-1))

    def _timed(self, name: str, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        start = self._clock()
        result = run()
        self.seconds[name] += self._clock() - start
        return result

    @torch.no_grad()
    def _last_state(self, inputs: Any) -> torch.Tensor:
        output = self._model.generate(
            **inputs,
            max_new_tokens=1,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        state: torch.Tensor = output.hidden_states[0][-1][0, -1]
        return state


def published_search(space: Space, evaluator: Evaluator, trials: int, seed: int) -> list[float]:
    """Return the gap of each trial of the published search, every one on all samples.

    It knows no presets. The gaps are measured by the engine, which finds the same ones sooner.
    """
    sampler = optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=RANDOM, deterministic_objective=True
    )
    study = optuna.create_study(sampler=sampler)

    def gap(trial: optuna.Trial) -> float:
        config = space.decode(space.suggest(trial))
        batches = evaluator.evaluate(config, answers=False)
        return fmean(result.gap for batch in batches for _, result in batch)

    study.optimize(gap, n_trials=trials)
    return [float(trial.values[0]) for trial in study.get_trials(deepcopy=False)]


def clock_of(name: str) -> Callable[[], float]:
    """Return ``wall`` or ``cpu`` time of this process."""
    return time.perf_counter if name == "wall" else time.process_time
