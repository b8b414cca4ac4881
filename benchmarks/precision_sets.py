"""Where half precision's deviation comes from: the sets that are chosen, or all that follows.

A config is run in fp32; in fp32 with noise of 1e-6 on the features that its selector sees, which no
arithmetic can be asked to tell apart; in bf16; and in bf16 with the sets that fp32 has chosen. Per
run: how far the mean gap is from fp32's in percent, with the standard error of the differences
paired by picture (one question each), and the share of each set that fp32 keeps, too.

    python benchmarks/precision_sets.py [--samples 24] [--selectors distinct dpp] [--docs FILE]
"""

import argparse
import math
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from common import finish, markdown, name_model, write_section
from precision import deviation, gaps

from prunetune.calibration import load_calibration
from prunetune.measure.evaluator import Evaluator
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.runtime.choice import choose

NOISE = 1e-6
SCORERS = [{"name": "cls_attention"}, {"name": "feature_distance", "weight": 0.5}]


class Chosen:
    """Stands in for the runtime's choice: remembers sets, repeats given ones, adds noise."""

    def __init__(self, given: list[torch.Tensor] | None, noise: int | None) -> None:
        self.given, self.sets = given, list[torch.Tensor]()
        self.dice = None if noise is None else torch.Generator().manual_seed(noise)

    def __call__(self, selector: Any, context: Any, count: int, memo: Any) -> torch.Tensor:
        """Return a keep index, as ``selected`` does, which keeps nothing from call to call."""
        if self.dice is not None:
            factor = 1 + NOISE * torch.randn(context.features.shape, generator=self.dice)
            context = replace(context, known=None, features=context.features * factor)
        found = selector.keep(context, count)
        if self.given is not None:
            found = self.given[len(self.sets)]
        self.sets.append(found)
        return found


def run(
    evaluator: Evaluator,
    stage: dict[str, Any],
    given: list[torch.Tensor] | None = None,
    noise: int | None = None,
) -> tuple[list[float], list[torch.Tensor]]:
    """Return each sample's gap, and the sets that were kept."""
    chosen, own = Chosen(given, noise), choose.selected
    choose.selected = chosen
    try:
        return gaps(evaluator, stage), chosen.sets
    finally:
        choose.selected = own


def overlap(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    """Return the mean share of each set that the other has, too."""
    shares = [
        len(set(a.tolist()) & set(b.tolist())) / len(a) for a, b in zip(one, two, strict=True)
    ]
    return math.fsum(shares) / len(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25])
    parser.add_argument("--mass", type=float, nargs="+", default=[1.0])
    parser.add_argument("--selectors", nargs="+", default=["distinct", "dpp"])
    parser.add_argument("--docs", default="", help="page to write; empty: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    everything, _ = load_calibration(shipped_data(arguments.model))
    first = {sample.image_id: sample for sample in reversed(everything.samples)}
    chosen = tuple(s for s in everything.samples if first[s.image_id] is s)[: arguments.samples]
    samples = replace(everything, samples=chosen)
    deepest = max(arguments.layers)
    full, half = (
        Evaluator(load_model(arguments.model, dtype=dtype), samples, deepest=deepest)
        for dtype in ("float32", "bfloat16")
    )
    rows, result = [], {}
    parts = product(arguments.selectors, arguments.layers, arguments.keep, arguments.mass)
    for name, layer, keep, mass in parts:
        stage = {"layer": layer, "retention": keep, "scorers": SCORERS, "mass": mass}
        stage["selector"] = {"name": name}
        base, sets = run(full, stage)
        others = {
            "noise": run(full, stage, noise=1),
            "noise2": run(full, stage, noise=2),
            "bf16": run(half, stage),
            "same": run(half, stage, given=sets),
        }
        cells = []
        for other, theirs in others.values():
            moved, error = deviation(other, base)
            cells.append(f"{moved:+.1f} ± {error:.1f} ({100 * overlap(sets, theirs):.0f}%)")
        gap = math.fsum(base) / len(base)
        rows.append((name, str(layer), f"{keep:g}", f"{mass:g}", f"{gap:.4f}", *cells))
        result[" | ".join(rows[-1][:4])] = {"gap": gap, **dict(zip(others, cells, strict=True))}
        print(rows[-1], flush=True)
    page = [
        f"`python benchmarks/precision_sets.py --model {arguments.model} --samples "
        f"{len(samples)}` on {datetime.now(UTC):%Y-%m-%d}: {len(samples)} calibration pictures, "
        f"torch {torch.__version__}, transformers {transformers.__version__}. Percent of fp32's "
        "gap, and in brackets the share of fp32's sets that is kept, too.",
        "",
        *markdown(
            (
                *("selector", "layer", "kept", "mass", "gap, fp32", f"fp32, noise {NOISE:g}"),
                *("another noise", "bf16", "bf16 with fp32's sets"),
            ),
            rows,
        ),
    ]
    print("\n".join(page))
    if arguments.docs:
        write_section(Path(arguments.docs), "precision-sets", page)
    finish(result)


if __name__ == "__main__":
    main()
