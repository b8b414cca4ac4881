"""What half precision does to a pruned answer: bf16 and fp16 against fp32, each selector, mass.

Each dtype has its own unpruned run to be compared with. Per config: the mean gap in fp32, and how
far the other two are from it, in percent, with the standard error of the paired differences; so
the table tells a deviation from noise, and how many samples would. `floor` is how far the
unpruned answers themselves are from fp32's (1 - cosine): no gap is known better than that.
Writes a section of docs/performance.md if told to.

    python benchmarks/precision.py [--samples 160] [--keep 0.25 0.1] [--docs FILE]
    python benchmarks/precision.py --fresh 13 --samples 560 --selectors distinct
"""

import argparse
import math
import tempfile
import time
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from common import finish, markdown, name_model, write_section
from fresh import kind_of

from prunetune.calibration import CalibrationSet, load_calibration, load_sides
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.selectors import SELECTORS
from training.tiny.make_calibration import write_split

HALVES = ("bfloat16", "float16")
LIMIT = 5.0
"""Percent of fp32's gap that a deviation may be."""


def configs(layers: list[int], keeps: list[float], names: list[str]) -> dict[str, dict[str, Any]]:
    """Return one stage per selector, layer, retention and mass: config by name."""
    found = {}
    for name, layer, keep, mass in product(names, layers, keeps, (0.0, 1.0)):
        # At layers >= 1 the scores, too, are made of the states of half precision.
        scorers = [{"name": "cls_attention"}, {"name": "feature_distance", "weight": 0.5}]
        stage = {"layer": layer, "retention": keep, "scorers": scorers, "mass": mass}
        stage["selector"] = {"name": name}
        found[f"{name} | {layer} | {keep:g} | {mass:g}"] = stage
    return found


def gaps(evaluator: Evaluator, stage: dict[str, Any]) -> list[float]:
    """Return each sample's gap under a config of one stage."""
    facts = evaluator.facts()
    config = PruningConfig.parse(
        {
            "format": "prunetune.config",
            "version": 2,
            "model": {"model_type": facts.model_type, "num_layers": facts.num_layers},
            "separators": "drop",
            "stages": [stage],
        }
    )
    return [one.gap for batch in evaluator.evaluate(config, answers=False) for _, one in batch]


def measure(
    model: str, dtype: str, samples: CalibrationSet, stages: dict[str, dict[str, Any]]
) -> tuple[dict[str, list[float]], torch.Tensor]:
    """Return each config's gaps, and the unpruned final states, ``[samples, d]`` float64."""
    deepest = max(stage["layer"] for stage in stages.values())
    evaluator = Evaluator(load_model(model, dtype=dtype), samples, deepest=deepest)
    states = [evaluator.full.get(i).tail[0].double() for i in range(len(samples))]
    return {name: gaps(evaluator, stage) for name, stage in stages.items()}, torch.stack(states)


def deviation(half: list[float], full: list[float]) -> tuple[float, float]:
    """Return how far the mean of ``half`` is from that of ``full``, and its error, in percent."""
    n, whole = len(full), math.fsum(full)
    share = math.fsum(half) / whole
    # Delta method: of a ratio of means over the same samples.
    spread = math.fsum((a - share * b) ** 2 for a, b in zip(half, full, strict=True))
    error = math.sqrt(spread * n / max(1, n - 1)) / whole
    return 100 * (share - 1), 100 * error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--fresh", type=int, help="generator seed of a fresh set to take them from")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.1])
    parser.add_argument("--selectors", nargs="+", default=list(SELECTORS))
    parser.add_argument("--docs", default="", help="page to write; empty: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    folder = tempfile.TemporaryDirectory(prefix="prunetune-fresh-")
    if arguments.fresh is None:
        samples, _ = load_calibration(shipped_data(arguments.model))
    else:
        # Four questions a picture.
        write_split(
            "held_out",
            Path(folder.name),
            -(-arguments.samples // 4),
            arguments.fresh,
            kind_of(arguments.model),
        )
        samples = load_sides("tiny", folder.name)[1]
    samples = samples.limit(arguments.samples)
    stages = configs(arguments.layers, arguments.keep, arguments.selectors)
    full, states = measure(arguments.model, "float32", samples, stages)
    halves, floor = {}, {}
    for dtype in HALVES:
        halves[dtype], own = measure(arguments.model, dtype, samples, stages)
        floor[dtype] = float((1 - torch.cosine_similarity(own, states, dim=1)).mean())
    result: dict[str, Any] = {"samples": len(samples), "floor": floor, "configs": {}}
    rows, beyond = [], []
    for name in stages:
        cells, found = [], {}
        for dtype in HALVES:
            moved, error = deviation(halves[dtype][name], full[name])
            # Samples at which the limit is two standard errors.
            needed = math.ceil(len(samples) * (2 * error / LIMIT) ** 2)
            found[dtype] = {"percent": moved, "error": error, "needed": needed}
            cells += [f"{moved:+.1f} ± {error:.1f}", str(needed)]
            if abs(moved) > LIMIT:
                beyond.append(f"{name} {dtype}")
        gap = math.fsum(full[name]) / len(samples)
        result["configs"][name] = {"gap": gap, **found}
        rows.append((*name.split(" | "), f"{gap:.4f}", *cells))
    worst = {d: max(abs(c[d]["percent"]) for c in result["configs"].values()) for d in HALVES}
    fresh = arguments.fresh is not None
    source = f"questions of generator seed {arguments.fresh}" if fresh else "calibration samples"
    page = [
        f"`python benchmarks/precision.py --model {arguments.model} --samples {len(samples)}` on "
        f"{datetime.now(UTC):%Y-%m-%d}: {len(samples)} {source}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; "
        f"{time.monotonic() - began:.0f} s. Unpruned answers are "
        + " and ".join(f"{floor[dtype]:.1e} ({dtype})" for dtype in HALVES)
        + " from fp32's; the largest deviation is "
        + " and ".join(f"{worst[dtype]:.1f}% ({dtype})" for dtype in HALVES)
        + ".",
        "",
        *markdown(
            (
                *("selector", "layer", "kept", "mass", "gap, fp32", "bf16, %"),
                *("samples to tell 5%", "fp16, %", "samples to tell 5%"),
            ),
            rows,
        ),
    ]
    print("\n".join(page))
    if arguments.docs:
        write_section(Path(arguments.docs), "precision", page)
    finish(result | {"worst": worst, "beyond": beyond})


if __name__ == "__main__":
    main()
