"""Two workers with one thread each against one, on `mid`: how much more they get done a second.

Every trial measures all samples (no trial pruner). What counts is the time in which all workers
run a trial: starting processes and waiting for the last trial are left out. Trials differ in what
they cost, so work is the FLOPs of their surviving suffix, not their number. References are computed
once and read from one cache on disk by all.

    python benchmarks/search_workers.py [--trials 16] [--samples 8] [--rounds 1] --json
    python benchmarks/search_workers.py --trials 1 --samples 2 --tiny      # that it runs
"""

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import finish
from mid import SIDE, load_mid, mid_samples

from prunetune.budget import ModelFacts
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.spec import StudySpec
from prunetune.study.prepare import prepare
from prunetune.study.run import BATCH_SIZE
from prunetune.study.study import run_trials
from prunetune.study.trials.trials import config_of
from prunetune.study.workers.crew import Cache, Workers, crew


def write_model_and_data(folder: Path, samples: int, tiny: bool) -> None:
    size = {"layers": 4, "width": 64, "side": 5} if tiny else {}
    loaded = load_mid(**size)
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    rows = []
    # Besides, one picture that is held out: a search asks for some.
    for k, sample in enumerate(mid_samples(samples + 1, side=size.get("side", SIDE))):
        sample.images[0].save(folder / "data" / f"{k}.png")
        split = "calibration" if k < samples else "held_out"
        rows.append({"image": f"{k}.png", "question": sample.question, "split": split})
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "data" / "rows.jsonl").write_text(text)


def suffix_flops(config: PruningConfig, facts: ModelFacts) -> float:
    """Return FLOPs of a mean prompt's surviving suffix, linear layers only."""
    ends = [stage.layer for stage in config.stages[1:]] + [facts.num_layers]
    return sum(
        (end - stage.layer) * (stage.retention * facts.image_tokens + facts.text_tokens)
        for stage, end in zip(config.stages, ends, strict=True)
    )


def throughput(count: int, folder: Path, options: argparse.Namespace, name: str) -> float:
    """Return work a second of ``count`` workers."""
    spec = StudySpec(
        model=str(folder / "model"),
        data=str(folder / "data" / "rows.jsonl"),
        keep=options.keep,
        trials=options.trials * count,
        trial_pruner="none",
        sampler="random",
    )
    given: dict[str, Any] = {"skip_bad": False, "dtype": None, "device": None}
    prepared = prepare(spec, out=folder / name, storage=None, study_name=None, **given)
    cache = Cache(str(folder / "cache"))
    evaluator = Evaluator(
        prepared.loaded,
        prepared.calibration,
        deepest=prepared.deepest,
        batch_size=BATCH_SIZE,
        cache=cache.path(),
    )
    names = {**given, "storage": None, "study_name": None}
    others = crew(prepared, names, BATCH_SIZE, cache, Workers(count, 1)) if count > 1 else None
    study = run_trials(prepared.spec, evaluator, out=prepared.out, others=others)
    facts = evaluator.facts()
    spans = [
        (t.datetime_start.timestamp(), t.datetime_complete.timestamp(), config_of(t))
        for t in study.get_trials(deepcopy=False)
        if t.datetime_start and t.datetime_complete and "repeats" not in t.user_attrs
    ]
    edges = sorted({edge for start, end, _ in spans for edge in (start, end)})
    seconds = work = 0.0
    for left, right in pairwise(edges):
        running = [s for s in spans if s[0] <= left and right <= s[1]]
        # Between two trials of one worker there is its overhead: that time counts, too.
        if len(running) < count and right - left > 0.5:
            continue
        seconds += right - left
        for start, end, config in running:
            work += suffix_flops(config, facts) * (right - left) / (end - start)
    print(f"{count} worker(s): {work / seconds:.3g} units of work a second in {seconds:.0f} s")
    return work / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8, help="a worker")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a small model: that it runs")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always so)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model_and_data(folder, options.samples, options.tiny)
        for k in range(options.rounds):
            one, two = (throughput(n, folder, options, f"{k}-{n}") for n in (1, 2))
            ratios.append(two / one)
    finish({"two_workers_over_one": round(statistics.median(ratios), 3), "rounds": options.rounds})


if __name__ == "__main__":
    main()
