"""Trains projector and low-rank updates; the same command goes on where it was left.

    ENVIRONMENT/bin/python -m benchmarks.real_parts.train --out FOLDER

In FOLDER: `parts/` (the assembled model), `state.safetensors` (what has been trained, with its
moments), `progress.json` (every look at held-out objects), at the end `model/`, updates merged.
The stop rule: the lower end of the 95% interval of accuracy over the blind baseline (the same
questions, noise for pictures) is above --clear points, or --hours of CPU time are used up.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.real_parts.align import Aligner
from benchmarks.real_parts.composites import (
    SEEDS,
    TYPES,
    compose,
    lessons,
    samples,
    sources_of,
)
from benchmarks.real_parts.cutouts import Sources
from benchmarks.real_parts.trainee import Sample, Trainee

HALF = 1.96
TOGETHER = 8
"""Pictures of a step of the projector alone."""


def look(trainee: Trainee, asked: list[Sample]) -> dict[str, Any]:
    """Accuracy on held-out objects, sighted and blind, and the interval of the difference."""
    sighted, blind = (trainee.right(asked, b) for b in (False, True))
    apart = [float(a) - float(b) for a, b in zip(sighted, blind, strict=True)]
    kinds = {
        kind: [ok for ok, (_, q) in zip(sighted, asked, strict=True) if q.type == kind]
        for kind in TYPES
    }
    half = HALF * float(np.std(apart)) / math.sqrt(len(apart))
    return {
        "step": trainee.progress["step"],
        "cpu_seconds": round(trainee.progress["cpu_seconds"]),
        "questions": len(asked),
        "accuracy": 100 * float(np.mean(sighted)),
        "blind": 100 * float(np.mean(blind)),
        "ahead": 100 * float(np.mean(apart)),
        "half": 100 * half,
        "kinds": {kind: 100 * float(np.mean(ok)) for kind, ok in kinds.items() if ok},
    }


def stopped(progress: dict[str, Any], clear: float, hours: float) -> str | None:
    """Why training ends, or None."""
    looks = progress["looks"]
    if looks and looks[-1]["ahead"] - looks[-1]["half"] > clear:
        return "clearly above the blind baseline"
    return "out of CPU time" if progress["cpu_seconds"] >= 3600 * hours else None


def align(trainee: Trainee, sources: Sources, pictures: int) -> None:
    """Shows so many pictures to the projector alone, at one go; nothing where that is done."""
    progress, began = trainee.progress, time.process_time() - trainee.progress["cpu_seconds"]
    if progress["aligned"]:
        return
    aligner = Aligner(trainee.model.model, trainee.processor, list(sources.objects))
    moves = list(trainee.model.model.multi_modal_projector.parameters())
    adamw = torch.optim.AdamW(moves, trainee.rate, weight_decay=0.0)
    for first in range(0, pictures, TOGETHER):
        rng = np.random.default_rng([SEEDS["align"], first])
        loss = aligner.loss([compose(rng, sources, trainee.size) for _ in range(TOGETHER)])
        loss.backward()
        for group in adamw.param_groups:
            # Down to nothing, so that what training starts from does not depend on the last batch.
            group["lr"] = trainee.rate * (1 - first / pictures)
        adamw.step()
        adamw.zero_grad()
        progress["cpu_seconds"] = time.process_time() - began
        if first % (20 * TOGETHER) == 0:
            print(f"{progress['cpu_seconds']:.0f} s aligned {first} loss {loss:.3f}", flush=True)
    progress["aligned"] = pictures
    trainee.store()


def train(trainee: Trainee, sides: dict[str, Sources], options: argparse.Namespace) -> str:
    """Steps and looks until the stop rule says why to end."""
    seed = [SEEDS["progress"]]
    asked = samples(seed, sides["held_out"], trainee.size, options.questions)
    align(trainee, sides["train"], options.align)
    began = time.process_time() - trainee.progress["cpu_seconds"]
    looked = saved = time.process_time() - began
    while True:
        progress = trainee.progress
        if (why := stopped(progress, options.clear, options.hours)) is not None:
            return why
        if options.steps is not None and progress["step"] >= options.steps:
            progress["looks"].append(look(trainee, asked))
            return f"{options.steps} steps were asked for"
        chosen = lessons([SEEDS["train"], progress["step"]], sides["train"], trainee.size, 4)
        loss = trainee.step(chosen, options.warm)
        now = progress["cpu_seconds"] = time.process_time() - began
        if progress["step"] % 20 == 0:
            print(f"{now:.0f} s step {progress['step']} loss {loss:.3f}", flush=True)
        if now - looked > 60 * options.look_minutes:
            progress["looks"].append(look(trainee, asked))
            print(json.dumps(progress["looks"][-1]), flush=True)
            looked = time.process_time() - began
        if now - saved > 120:
            trainee.store()
            saved = now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--files", type=Path, help="the unpacked packages; none: stand-ins")
    parser.add_argument("--hours", type=float, default=6, help="of CPU time, all runs together")
    parser.add_argument(
        "--clear", type=float, default=15, help="points above blind that are enough"
    )
    parser.add_argument("--look-minutes", type=float, default=20, help="of CPU time between looks")
    parser.add_argument("--questions", type=int, default=200, help="of a look")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--half", action="store_true", help="multiply in bf16")
    parser.add_argument("--align", type=int, default=4000, help="pictures for the projector alone")
    parser.add_argument("--warm", type=int, default=50)
    parser.add_argument("--steps", type=int, help="end after so many, whatever is reached")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainee = Trainee(options.out, options.rate, options.half)
    print("resumed" if trainee.resume() else "begun", flush=True)
    sides = sources_of(options.files)
    why = train(trainee, sides, options)
    trainee.progress["ended"] = why
    trainee.store()
    trainee.finish()
    print(json.dumps({"ended": why, **trainee.progress["looks"][-1]}))


if __name__ == "__main__":
    main()
