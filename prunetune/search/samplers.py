"""Samplers by name, and a seed for each run."""

import hashlib
import importlib
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler

from prunetune.errors import StudyError


def sampler_seed(seed: int, worker: int, trials: int) -> int:
    """Return a seed of its own for every worker and every resumption.

    The same seed would draw the points again that the study has.
    """
    digest = hashlib.sha256(f"{seed}/{worker}/{trials}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def make_sampler(name: str, seed: int, startup: int = 10) -> BaseSampler:
    """Return a sampler with all its arguments written out: defaults change between releases.

    Args:
        name: As in ``StudySpec.sampler``.
        seed: Of its random numbers.
        startup: Random points before it models anything, where it does.

    Raises:
        StudyError: A package it needs is not installed.
    """
    makers: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
        ),
        "tpe-uni": lambda: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=False, constant_liar=True
        ),
        "gp": lambda: optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=startup, deterministic_objective=True
        ),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=seed, scramble=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    needed = {"cmaes": "cmaes", "gp": "scipy", "qmc": "scipy"}.get(name)
    if needed is not None:
        try:
            importlib.import_module(needed)
        except ImportError:
            raise StudyError(
                f"sampler {name!r} needs the package {needed}: pip install {needed}"
            ) from None
    return makers[name]()
