"""Samplers by name, and a seed for each run."""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.samplers.nsgaii import UniformCrossover

from prunetune.errors import StudyError
from prunetune.study.trials.estimates import EstimatesSampler
from prunetune.study.trials.near import NearBest
from prunetune.study.trials.spread_start import SharedSequence, SpreadStart

# Those that model values; CMA-ES takes pruned trials by itself.
_MODELS = ("tpe", "tpe-uni", "gp")
_BLIND = ("random", "qmc")


@dataclass(frozen=True)
class Near:
    """How points near the best ones are drawn; see ``NearBest``.

    Attributes:
        share: Of the points, as in ``StudySpec.refine``.
        config_of: Digest of the config that parameters stand for.
    """

    share: float
    config_of: Callable[[Mapping[str, Any]], str]


def sampler_seed(seed: int, worker: int, trials: int) -> int:
    """Return a seed of its own for every worker and every resumption.

    The same seed would draw the points again that the study has.
    """
    digest = hashlib.sha256(f"{seed}/{worker}/{trials}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def make_sampler(
    name: str,
    seed: int,
    startup: int = 10,
    objectives: int = 1,
    start: str = "random",
    sequence: int | None = None,
    near: Near | None = None,
) -> BaseSampler:
    """Return a sampler with all its arguments written out: defaults change between releases.

    Args:
        name: As in ``StudySpec.sampler``.
        seed: Of its random numbers, the worker's own.
        startup: Random points before it models anything, where it does.
        objectives: How many are minimised. With two, ``tpe`` models each parameter on its own:
            measured better there (hypervolume after 100 trials 1.19 against 1.07).
        start: What the first points are drawn from, as in ``StudySpec.start``.
        sequence: Seed of a Sobol sequence, the same for all who work on the study: scrambled by
            each of them anew, their points together are hardly more even than random ones
            (measured). None: the worker's.
        near: Points near the best between those of a sampler that learns, with one objective.

    Raises:
        StudyError: A package it needs is not installed.
    """
    shared = seed if sequence is None else sequence
    makers: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=objectives == 1, constant_liar=True
        ),
        "tpe-uni": lambda: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=False, constant_liar=True
        ),
        "gp": lambda: optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=startup, deterministic_objective=True
        ),
        # A pruned trial's last report is the estimate of its mean: most trials would be lost.
        "cmaes": lambda: optuna.samplers.CmaEsSampler(
            seed=seed, n_startup_trials=startup, consider_pruned_trials=True
        ),
        # 20: better than 50 up to 200 trials (measured), with a few generations to breed.
        "nsga2": lambda: optuna.samplers.NSGAIISampler(
            seed=seed,
            population_size=20,
            mutation_prob=None,
            crossover=UniformCrossover(swapping_prob=0.5),
            crossover_prob=0.9,
        ),
        "qmc": lambda: SharedSequence(shared, seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    needed = {"cmaes": ["cmaes"], "gp": ["scipy"], "qmc": ["scipy"]}.get(name, [])
    for package in [*needed, *(["scipy"] if start == "qmc" else [])]:
        try:
            importlib.import_module(package)
        except ImportError:
            raise StudyError(
                f"sampler {name!r} needs the package {package}: pip install 'prunetune[search]'"
            ) from None
    sampler = makers[name]()
    sampler = EstimatesSampler(sampler) if name in _MODELS and objectives == 1 else sampler
    if start == "qmc" and name != "qmc":
        sampler = SpreadStart(sampler, startup, SharedSequence(shared, seed))
    if near is None or name in _BLIND or objectives > 1:
        return sampler
    return NearBest(sampler, near.share, startup, seed, near.config_of)
