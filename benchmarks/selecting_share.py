"""What choosing a set costs beside a prefill: in operations, in time and in memory.

Per selector: operations, at most, as a share of a 7B prefill (2,880 image tokens of 4,096
numbers); processor time of scores, selector and joining inside real pruned prefills of `mid` (24
decoder layers, d=512, 1,479 image tokens, one stage at layer 0), as a share of the unpruned
prefill, one thread; and scratch memory for 8,192 patches of 4,096 numbers in two views. Writes a
section of docs/performance.md.

    python benchmarks/selecting_share.py [--rounds 5] [--keep 0.25 0.1] [--docs FILE]
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from common import Clock, finish, interleave, markdown, write_section
from selecting import WIDE, image, prefill

from prunetune.config import PruningConfig
from prunetune.deploy.request import random_request
from prunetune.deploy.shapes import SHAPES, build
from prunetune.runtime import apply
from prunetune.selectors import SELECTORS, SelectContext
from prunetune.tokens import ImageGeometry, grid_geometry

DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
WHOLE, TEXT = 2880, 64
LIMITS = {"flops": 0.01, "mib": 256}


def operations(name: str, n: int, d: int, k: int) -> float:
    """Return how many floating-point operations a choice takes at most; a multiply-add is two."""
    # Cosines: half of the symmetric product, and scaling.
    product = n * n * d + 2 * n * n if SELECTORS.get(name).pairwise else 0
    loop = {
        # Subtract, clamp and add every pair at every step, as on a GPU; lazily it is less.
        "cover": 3 * k * n * n + 10 * n * n,
        "dpp": k * k * n,
        "maxmin": 4 * k * n,
        "mmr": 4 * k * n + n * n,
        # A quarter of the pairs that are left is looked at whenever 8 leave.
        "distinct": sum(m * m // 4 for m in range(k, n, 8)),
    }
    return product + loop.get(name, 20 * n)


def measured(keeps: list[float], rounds: int, shrunk: bool) -> dict[tuple[str, float], float]:
    """Return the processor time of choosing over that of the unpruned prefill, on `mid`."""
    shape = SHAPES["mid"].shrunk() if shrunk else SHAPES["mid"]
    device, dtype = torch.device("cpu"), torch.float32
    model: Any = build(shape, device=device, dtype=dtype)
    inputs = random_request(
        shape, device=device, dtype=dtype, batch=1, images=1, prompt_tokens=TEXT, size=None
    ).inputs
    reference = {"model_type": shape.model_type, "num_layers": shape.num_layers}
    spent: dict[Any, list[dict[str, float]]] = defaultdict(list)

    def case(key: Any, config: PruningConfig | None) -> Any:
        def run() -> None:
            clock = Clock()
            if config is None:
                clock.timed("prefill", model)(**inputs, logits_to_keep=1)
            else:
                with clock.running(), apply(model, config):
                    clock.timed("prefill", model)(**inputs, logits_to_keep=1)
            spent[key].append(dict(clock.seconds))

        return run

    cases = {"unpruned": case("unpruned", None)}
    for keep in keeps:
        for name in SELECTORS:
            stage = {"layer": 0, "retention": keep, "scorers": [{"name": "coverage"}]}
            stage |= {"selector": {"name": name}}
            data = {"format": "prunetune.config", "version": 2, "model": reference}
            config = PruningConfig.parse(data | {"stages": [stage]})
            cases[f"{name} {keep:g}"] = case((name, keep), config)
    with torch.no_grad():
        interleave(cases, rounds)
    # The first run of each was the warm-up.
    whole = statistics.median(run["prefill"] for run in spent.pop("unpruned")[1:])
    return {
        key: statistics.median(run["choose"] for run in runs[1:]) / whole
        for key, runs in spent.items()
    }


def two_views(n: int, width: int) -> SelectContext:
    """The patches of `image`, in two views."""
    ctx, half = image(n, width), grid_geometry(64, n // 128)
    parts = {f.name: [getattr(half, f.name)] * 2 for f in fields(ImageGeometry)}
    parts["tile"] = [half.tile, half.tile + 1]
    place = ImageGeometry(**{name: torch.cat(both) for name, both in parts.items()})
    return SelectContext(ctx.features, ctx.scores, place)


def growth(name: str, width: int) -> int:
    """Return by how many MiB the largest resident set grows while 8,192 patches are chosen among.

    To be called in a process of its own.
    """

    def memory(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024

    selector, ctx = SELECTORS.get(name)(), two_views(8192, width)
    selector.order(ctx.select(torch.arange(256)), 32)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    # `distinct` drops eight at a time: the first steps need most.
    selector.order(ctx, 8000 if name == "distinct" else 2048)
    return memory("VmHWM") - before


def scratch(name: str, width: int) -> int:
    """Return `growth` of a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--growth", name, "--width", str(width)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.1])
    parser.add_argument("--width", type=int, default=WIDE, help="of the patches in memory")
    parser.add_argument("--shrunk", action="store_true", help="a small model: that it runs")
    parser.add_argument("--growth", default="", help=argparse.SUPPRESS)
    parser.add_argument("--docs", default=str(DOCS), help="page to write; empty: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.growth:
        print(growth(arguments.growth, arguments.width))
        return
    began, keeps = time.monotonic(), arguments.keep
    shares = measured(keeps, arguments.rounds, arguments.shrunk)
    rows, result = [], {}
    for name in SELECTORS:
        computed = [
            operations(name, WHOLE, WIDE, int(WHOLE * keep)) / (2 * prefill(WHOLE))
            for keep in keeps
        ]
        times, mib = [shares[name, keep] for keep in keeps], scratch(name, arguments.width)
        fits = max(computed) < LIMITS["flops"] and mib <= LIMITS["mib"]
        result[name] = {"flops": computed, "measured": times, "scratch_mib": mib, "fits": fits}
        cells = [f"{100 * share:.3f}%" for share in computed]
        cells += [f"{100 * share:.2f}%" for share in times]
        rows.append((f"`{name}`", *cells, f"{mib}{'' if fits else ' TOO MUCH'}"))
        print(" | ".join(rows[-1]), flush=True)
    kept = [f"{100 * keep:g}%" for keep in keeps]
    page = [
        f"`python benchmarks/selecting_share.py --rounds {arguments.rounds}` on "
        f"{datetime.now(UTC):%Y-%m-%d}: one thread of {platform.machine()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; "
        f"{time.monotonic() - began:.0f} s. Operations at most, of a 7B prefill of {WHOLE} tokens; "
        "processor time of scoring and choosing, of the unpruned prefill of `mid` (1479 image "
        f"tokens, d=512); growth of the resident set for 8,192 patches, d={arguments.width}.",
        "",
        *markdown(
            (
                "selector",
                *(f"operations, {share} kept" for share in kept),
                *(f"time on `mid`, {share} kept" for share in kept),
                "scratch MiB",
            ),
            rows,
        ),
    ]
    if arguments.docs:
        write_section(Path(arguments.docs), "selecting", page)
    finish(result)


if __name__ == "__main__":
    main()
