"""What pruning pays on a CPU: `prunetune bench` on the mid-size random model, every preset.

24 decoder layers, d=512, 1,479 image and 64 text tokens, fp32; unpruned and every preset in the
same interleaved rounds. Writes the CPU section of docs/performance.md.

    python benchmarks/cpu.py [--rounds 5] [--keep 0.1 0.25] [--threads 1] [--docs FILE]
"""

import argparse
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from common import finish, markdown, write_section

from prunetune.budget import facts_of, flops_ratio, mean_retention
from prunetune.config import PruningConfig
from prunetune.deploy.bench import promised_lengths
from prunetune.deploy.memory import MIB
from prunetune.deploy.request import random_request
from prunetune.deploy.shapes import SHAPES, build
from prunetune.deploy.timing import Stopwatch, interleave
from prunetune.deploy.verdict import judge, median_of, ratio
from prunetune.errors import ConfigError
from prunetune.presets import load_preset, preset_names
from prunetune.runtime.apply import family_of

DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
TEXT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1])
    parser.add_argument("--new-tokens", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shrunk", action="store_true", help="a small model: that it runs")
    parser.add_argument("--docs", default=str(DOCS), help="page to write; empty: none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    shape = SHAPES["mid"].shrunk() if arguments.shrunk else SHAPES["mid"]
    device, dtype = torch.device("cpu"), torch.float32
    family = family_of(build(shape, device=device, dtype=dtype))
    request = random_request(
        shape, device=device, dtype=dtype, batch=1, images=1, prompt_tokens=TEXT, size=None
    )
    watch, new = Stopwatch(family), arguments.new_tokens

    plans: dict[str, PruningConfig] = {}
    missing = []
    for keep in arguments.keep:
        for name in preset_names():
            try:
                plans[f"{name} {keep:g}"], _ = load_preset(
                    name, model_type=shape.model_type, num_layers=shape.num_layers, keep=keep
                )
            except ConfigError as error:
                missing.append(f"- `{name}` at {keep:g}: {error}")
    configs: dict[str, PruningConfig | None] = {"unpruned": None, **plans}
    cases = {name: watch.case(plan, request.inputs, new) for name, plan in configs.items()}
    runs = interleave(cases, arguments.rounds)
    full, facts = (
        runs["unpruned"],
        facts_of(family, image_tokens=request.image_tokens, text_tokens=request.text),
    )
    rows, result = [], {}
    for name, mine in runs.items():
        config = plans.get(name)
        stages = config.stages if config else ()
        prefill, ideal = ratio(mine, full, "prefill"), flops_ratio(stages, facts)
        kept = sum(length - TEXT for length in mine[0].lengths)
        exact = kept == sum(promised_lengths(config, request, shape.num_layers))
        share = kept / (shape.num_layers * request.image_tokens)
        result[name] = {
            "prefill_ratio": prefill.median,
            "prefill_interval": [prefill.low, prefill.high],
            "flops_ratio": ideal,
            "over_ideal": prefill.median / ideal,
            "kv_ratio": share,
            "mean_retention": mean_retention(stages, shape.num_layers),
            "exact": exact,
            "verdict": judge(full, mine, new).text if config else "",
        }
        rows.append(
            (
                f"`{name}`",
                f"{1e3 * median_of(mine, 'encode'):.0f}",
                f"{1e3 * median_of(mine, 'prefill'):.0f}",
                f"{prefill.median:.3f} ({prefill.low:.3f} to {prefill.high:.3f})",
                f"{ideal:.3f}",
                f"{prefill.median / ideal:.2f}x",
                f"{1e3 * median_of(mine, 'decode'):.1f}",
                f"{mine[0].kv_bytes / MIB:.1f}",
                f"{share:.4f}{'' if exact else ' NOT EXACT'}",
            )
        )
        print(" | ".join(rows[-1]), flush=True)
    page = [
        f"`python benchmarks/cpu.py --rounds {arguments.rounds}` on {datetime.now(UTC):%Y-%m-%d}: "
        f"{arguments.threads} thread(s) of {platform.machine()}; {shape.num_layers} decoder "
        f"layers, d={facts.hidden_size}, fp32, random weights; {request.image_tokens} image and "
        f"{TEXT} text tokens, {new} new, {arguments.rounds} interleaved rounds; torch "
        f"{torch.__version__}, transformers {transformers.__version__}; "
        f"{time.monotonic() - began:.0f} s.",
        "",
        *markdown(
            (
                *("preset and keep", "encode ms", "prefill ms", "prefill ratio", "FLOP ratio"),
                *("over ideal", "decode ms/token", "KV MiB", "visual KV ratio"),
            ),
            rows,
        ),
        *(["", *missing] if missing else []),
    ]
    if arguments.docs:
        write_section(Path(arguments.docs), "cpu", page)
    finish(result)


if __name__ == "__main__":
    main()
