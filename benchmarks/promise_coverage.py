"""How often a promise is kept: searches with `--max-drop`, judged on fresh questions.

Every seed is what `prunetune search --model tiny --max-drop 2 --seed S` runs, but its held-out set
is drawn anew (480 questions on 120 pictures), so that what chance decides differs from seed to
seed. The config that ships is measured on 4,800 further questions that nobody has seen: a promise
of 95% may be broken there by one seed in twenty.

    python benchmarks/promise_coverage.py --seeds 20 --out coverage.jsonl

Appends one JSON line a seed to --out: what is there is not searched again, so that a killed run
loses nothing; --report only says what is there.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import finish, name_model
from fresh import fresh
from ledger import Ledger, whose

from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.scores import SampleScore, image_ids, measure
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.promise import Promise
from prunetune.spec import StudySpec
from prunetune.study.outcome.decision import Decision, decide
from prunetune.study.outcome.promise import losses, lost
from prunetune.study.prepare import first_stages
from prunetune.study.study import run_trials
from prunetune.study.trials.best import front
from prunetune.study.trials.trials import config_of

HELD_OUT, UNSEEN = 1000, 2000
"""Seeds of the generator: of seed S's held-out set HELD_OUT + S, of the questions to judge by."""
SETS = 10
"""Fresh sets, of 480 questions each."""


class Bench:
    """The model, the calibration split and the fresh questions, which all seeds share."""

    def __init__(self, promise: Promise, options: argparse.Namespace) -> None:
        self.promise, self.trials, self.pictures = promise, options.trials, options.pictures
        self.model, pictures = options.model, options.pictures
        loaded = load_model(self.model)
        calibration, _ = load_calibration(shipped_data(self.model))
        if pictures is not None:
            calibration = calibration.limit(4 * pictures)
        deepest, _ = first_stages(self.spec(0), loaded, calibration)
        self.calibration = Evaluator(loaded, calibration, deepest=deepest)
        self.unseen = [fresh(self.calibration, UNSEEN + k, pictures) for k in range(options.sets)]

    def spec(self, seed: int) -> StudySpec:
        """Return what a seed searches."""
        return StudySpec(
            promise=self.promise,
            trials=self.trials,
            seed=seed,
            model=self.model,
            data=shipped_data(self.model),
        )

    def seed(self, seed: int) -> dict[str, Any]:
        """Search, decide, and judge what ships on fresh questions."""
        begun = time.perf_counter()
        held_out = fresh(self.calibration, HELD_OUT + seed, self.pictures)
        with tempfile.TemporaryDirectory(prefix="prunetune-coverage-") as folder:
            study = run_trials(self.spec(seed), self.calibration, out=Path(folder))
            points = front(study)

        def measured(trial: Any) -> list[SampleScore]:
            return measure(held_out, config_of(trial))

        decision = decide(self.promise, points, held_out, measured)
        shipped = [config_of(point) for point in points if point.number == decision.trial]
        return {
            "seed": seed,
            "trials": self.trials,
            "promise": self.promise.model_dump(),
            **_decided(decision),
            "fresh": self.judged(shipped[0]) if shipped else None,
            "seconds": round(time.perf_counter() - begun, 1),
        }

    def judged(self, config: PruningConfig) -> dict[str, Any]:
        """Return what a config loses on all fresh questions."""
        values: list[float] = []
        images: list[str] = []
        for unseen in self.unseen:
            values += losses(self.promise, measure(unseen, config), unseen.unpruned_correct)
            images += image_ids(unseen.samples)
        found = lost(values, images)
        return {
            "questions": len(values),
            "mean": found.mean,
            "interval": [found.low, found.high],
            "broken": found.mean > self.promise.most,
        }


def _decided(decision: Decision) -> dict[str, Any]:
    data = decision.to_dict()
    kept = ("kept", "trial", "cost", "loses", "room", "candidates")
    return {**{name: data[name] for name in kept}, "tested": len(decision.tested)}


def told(found: list[dict[str, Any]]) -> Iterator[str]:
    """Return what the seeds say, a line each, and the sum of it."""
    yield "seed  ships  cost    held-out loss, at most  fresh loss"
    for row in found:
        if row["fresh"] is None:
            yield f"{row['seed']:4d}  nothing"
            continue
        loses, seen = row["loses"], row["fresh"]
        broken = "  BROKEN" if seen["broken"] else ""
        yield (
            f"{row['seed']:4d}  {row['trial']:5d}  {row['cost']:.4f}  {100 * loses['mean']:13.2f}, "
            f"{100 * loses['bound']:7.2f}  {100 * seen['mean']:10.2f}{broken}"
        )


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    shipped = [row for row in found if row["fresh"] is not None]
    return {
        "seeds": len(found),
        "shipped": len(shipped),
        "broken": sum(row["fresh"]["broken"] for row in shipped),
        "above_own_bound": sum(r["fresh"]["mean"] > r["loses"]["bound"] for r in shipped),
        "mean_cost": sum(row["cost"] for row in shipped) / len(shipped) if shipped else None,
        "mean_fresh_loss": (
            sum(row["fresh"]["mean"] for row in shipped) / len(shipped) if shipped else None
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=StudySpec().trials)
    parser.add_argument("--max-drop", type=float, default=2.0, help="points of accuracy")
    parser.add_argument("--pictures", type=int, help="of a set; by default all 120")
    parser.add_argument("--sets", type=int, default=SETS, help="fresh sets")
    parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("--report", action="store_true", help="only say what is in --out")
    arguments = parser.parse_args()
    ledger = Ledger(arguments.out, None if arguments.report else whose(arguments.model))
    known = {row["seed"] for row in ledger.rows()}
    due = [seed for seed in range(arguments.seeds) if seed not in known]
    if due and not arguments.report:
        torch.set_num_threads(1)
        promise = Promise(loss="accuracy", most=arguments.max_drop / 100)
        bench = Bench(promise, arguments)
        for seed in due:
            row = bench.seed(seed)
            ledger.add(row)
            print(f"seed {seed}: {row['seconds']:.0f} s", flush=True)
    found = ledger.rows()
    print("\n".join(told(found)))
    finish(summary(found))


if __name__ == "__main__":
    main()
