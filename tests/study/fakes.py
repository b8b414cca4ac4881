"""A model without a model: studies on it take milliseconds."""

import random
import time
from dataclasses import dataclass

import optuna

from prunetune.budget import ModelFacts
from prunetune.scorers import SCORERS
from prunetune.spec import StudySpec
from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import storage_url
from prunetune.study.study import run_search

SUMS = {"selectors": ("top",), "mass": (0.0,), "per_crop": (False,)}
"""A space of sums of scores only, whose starts are presets and blends."""
FILES = {"study.db", "spec.toml", "config.json", "log.jsonl"}


@dataclass(frozen=True)
class Result:
    gap: float
    kl: float
    agrees: bool
    correct: bool | None
    kl_answer: float | None = None


@dataclass(frozen=True)
class Picture:
    image_id: str


class Fake:
    """A model whose gap is least with coverage weighted 1, topv -0.5 and the first stage at 1."""

    order = "abc, in order"

    def __init__(self, count=48, seed=0, digest="abc", answers=True, fail=None):
        noise = random.Random(seed)
        self.noise = [noise.uniform(0.5, 1.5) for _ in range(count)]
        self.samples = [Picture(f"image{i // 4}") for i in range(count)]
        self.unpruned_correct = [True if answers else None] * count
        self.answers, self.digest, self.fail = answers, digest, fail
        self.configs = []
        self.measured = 0
        self.open = 0

    def facts(self):
        return ModelFacts(
            "llava_next", 16, 128, 512, 4, 4, 32, 336, 20, scorers=tuple(SCORERS),
            name="fake", calibration_digest=self.digest, calibration_order=self.order,
            weights_digest="def",
        )  # fmt: skip

    def levels_near(self, budgets):
        return []

    def badness(self, config):
        if not config.stages:
            return 0.2
        first = config.stages[0]
        weights = {s.name: s.weight for s in first.scorers}
        bad = abs(weights.get("coverage", 0.0) - 1.0) + abs(weights.get("topv", 0.0) + 0.5)
        bad += sum(abs(w) for n, w in weights.items() if n not in ("coverage", "topv"))
        return 0.02 + 0.05 * bad + 0.1 * abs(first.layer - 1)

    def evaluate(self, config, *, answers=True):
        self.configs.append(config)
        if self.fail is not None:
            self.fail(len(self.configs))
        bad = self.badness(config)
        self.open += 1
        try:
            for first in range(0, len(self.samples), 8):
                batch = []
                for i in range(first, min(first + 8, len(self.samples))):
                    gap = bad * self.noise[i]
                    self.measured += 1
                    correct = gap < 0.2 if self.answers else None
                    batch.append((i, Result(gap, 2 * gap, gap < 0.1, correct, 4 * gap)))
                yield batch
        finally:
            self.open -= 1


def spec(**fields):
    return StudySpec(**{"model": "fake", "trials": 12, "trial_pruner": "none", **fields})


def search(tmp_path, evaluator=None, held_out=None, **fields):
    options = {
        k: fields.pop(k)
        for k in ("resume", "on_progress", "worker", "clock", "timer")
        if k in fields
    }
    return run_search(
        spec(**fields), evaluator or Fake(), held_out or Fake(seed=1), out=tmp_path, **options
    )


def trials_of(tmp_path):
    study = optuna.load_study(study_name=None, storage=open_storage(storage_url(tmp_path, None)))
    return study.trials


def wait(true, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
