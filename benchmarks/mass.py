"""What mass costs: prefill and a decoded token with it, over the same config without.

The mid-size random model of `cpu.py` (24 decoder layers, d=512, 1,479 image and 64 text tokens,
fp32) under sdpa; selector `cover`, one stage; mass 0 and 1 in the same interleaved rounds. Mass
takes an additive mask where there was none, and finds for each dropped token the kept one that it
joins. Processor time of one thread, so that other work on the machine does not count. Writes a
section of docs/performance.md.

    python benchmarks/mass.py [--rounds 9] [--keep 0.25 0.1] [--docs FILE]
"""

import argparse
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from common import finish, markdown, write_section

from prunetune.config import PruningConfig
from prunetune.deploy.request import random_request
from prunetune.deploy.shapes import SHAPES, Shape, build
from prunetune.deploy.timing import Spread, Stopwatch, interleave
from prunetune.deploy.verdict import median_of, ratio
from prunetune.runtime.apply import family_of

DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
TEXT = 64


class Spent(Stopwatch):
    """A stopwatch of processor time."""

    def now(self) -> float:
        """Return the seconds that this thread has computed."""
        return time.thread_time()


def config(shape: Shape, layer: int, keep: float, mass: float) -> PruningConfig:
    """One stage of `cover`."""
    stage = {"layer": layer, "retention": keep, "selector": {"name": "cover"}, "mass": mass}
    model = {"model_type": shape.model_type, "num_layers": shape.num_layers}
    data = {"format": "prunetune.config", "version": 2, "model": model, "stages": [stage]}
    return PruningConfig.parse(data)


def shown(ratio: Spread) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def page(arguments: Any, shape: Shape, rows: Sequence[Sequence[str]], seconds: float) -> list[str]:
    """Return the lines of the section."""
    columns = ("layer", "kept", "unpruned prefill ms", "prefill ms", "with mass", "ratio")
    return [
        f"`python benchmarks/mass.py --rounds {arguments.rounds}` on {datetime.now(UTC):%Y-%m-%d}: "
        f"processor time of one thread of {platform.machine()}; {shape.num_layers} decoder "
        f"layers, d=512, fp32, sdpa, random weights, 1479 image and {TEXT} text tokens, selector "
        f"`cover`, {arguments.new_tokens} new tokens, {arguments.rounds} interleaved rounds; torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {seconds:.0f} s.",
        "",
        *markdown((*columns, "decode ms/token", "with mass", "ratio"), rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.1])
    parser.add_argument("--new-tokens", type=int, default=33)
    parser.add_argument("--shrunk", action="store_true", help="a small model: that it runs")
    parser.add_argument("--docs", default=str(DOCS), help="page to write; empty: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    shape = SHAPES["mid"].shrunk() if arguments.shrunk else SHAPES["mid"]
    device, dtype = torch.device("cpu"), torch.float32
    family = family_of(build(shape, device=device, dtype=dtype))
    family.model.set_attn_implementation("sdpa")
    request = random_request(
        shape, device=device, dtype=dtype, batch=1, images=1, prompt_tokens=TEXT, size=None
    )
    watch, new = Spent(family), arguments.new_tokens
    places = list(product(arguments.layers, arguments.keep))
    plans = {(*at, mass): config(shape, *at, mass) for at in places for mass in (0.0, 1.0)}
    cases = {repr(key): watch.case(plan, request.inputs, new) for key, plan in plans.items()}
    runs = interleave(
        {"unpruned": watch.case(None, request.inputs, new), **cases}, arguments.rounds
    )
    rows, result = [], {}
    whole = f"{1e3 * median_of(runs['unpruned'], 'prefill'):.0f}"
    for layer, keep in places:
        without, mine = runs[repr((layer, keep, 0.0))], runs[repr((layer, keep, 1.0))]
        prefill, decode = ratio(mine, without, "prefill"), ratio(mine, without, "decode")
        times = [
            f"{1e3 * median_of(run, part):.1f}"
            for part in ("prefill", "decode")
            for run in (without, mine)
        ]
        rows.append(
            (str(layer), f"{keep:g}", whole, *times[:2], shown(prefill), *times[2:], shown(decode))
        )
        result[f"layer {layer}, {keep:g}"] = {
            "prefill_ratio": [prefill.median, prefill.low, prefill.high],
            "decode_ratio": [decode.median, decode.low, decode.high],
        }
        print(" | ".join(rows[-1]), flush=True)
    if arguments.docs:
        lines = page(arguments, shape, rows, time.monotonic() - began)
        write_section(Path(arguments.docs), "mass", lines)
    finish(result)


if __name__ == "__main__":
    main()
