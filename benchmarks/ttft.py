"""Time to the first token: pruning alone, smaller pictures, both, at equal token counts.

A random model shaped like Qwen2.5-VL, whose tower and projector are about a third of the FLOPs
before the first token (`prunetune bench --shape mid-qwen`). Each case leaves the same share of the
image tokens: pruned at layer 0 by `uniform`; sent smaller; or sent smaller by the square root of
the share, then pruned by the rest. Measured: encoder and prefill. Promised: FLOPs of tower and
language model. Their ratio of ratios is to be within 1.15.

    python benchmarks/ttft.py [--rounds 5] [--keep 0.25] [--threads 1] [--clock cpu] [--docs FILE]

On a machine that others use, `--clock cpu` takes the thread's processor time (of one thread only).
"""

import argparse
import math
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from common import finish, markdown, write_section

from prunetune.deploy.bench import Case, bench
from prunetune.deploy.request import largest_within, random_request, tokens_of
from prunetune.deploy.shapes import SHAPES, build
from prunetune.deploy.timing import Stopwatch
from prunetune.presets import load_preset
from prunetune.runtime.apply import family_of

DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
TEXT, WITHIN = 64, 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--shrunk", action="store_true", help="a small model: that it runs")
    parser.add_argument("--docs", default=str(DOCS), help="page to write; empty: none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.clock == "cpu":
        if arguments.threads != 1:
            parser.error("--clock cpu takes the time of one thread: --threads 1")
        Stopwatch.now = lambda self: time.thread_time()
    began = time.monotonic()
    shape = SHAPES["mid-qwen"].shrunk() if arguments.shrunk else SHAPES["mid-qwen"]
    device, dtype = torch.device("cpu"), torch.float32
    family = family_of(build(shape, device=device, dtype=dtype))

    def ask(size):
        return random_request(
            shape, device=device, dtype=dtype, batch=1, images=1, prompt_tokens=TEXT, size=size
        )

    def smaller(share):
        most = math.ceil(share * tokens_of(shape, None)[1])
        return largest_within(
            lambda size: tokens_of(shape, size)[1], shape.picture, most, shape.unit
        )

    def pruned(keep):
        return load_preset(
            "uniform", model_type=shape.model_type, num_layers=shape.num_layers, keep=keep
        )[0]

    full, rows, result = ask(None), [], {}
    for keep in arguments.keep:
        less, half = ask(smaller(keep)), ask(smaller(math.sqrt(keep)))
        # What pruning has to leave of the half-way picture: as many tokens as the smallest has.
        rest = less.image_tokens / half.image_tokens
        found = bench(
            family,
            pruned(less.image_tokens / full.image_tokens),
            full,
            new_tokens=1,
            rounds=arguments.rounds,
            uniform=False,
            more={"resized": Case(None, less), "both": Case(pruned(rest), half)},
        )
        for case in found.cases:
            if case.name == "unpruned" and rows:
                continue
            name = case.name if case.name == "unpruned" else f"{case.name} {keep:g}"
            over = case.first_ratio.median / case.first_flops_ratio
            result[name] = {
                "tokens": case.visual_slots // shape.num_layers,
                "encode": case.encode.median,
                "prefill": case.prefill.median,
                "first": case.first.median,
                "first_ratio": case.first_ratio.median,
                "first_interval": [case.first_ratio.low, case.first_ratio.high],
                "tower_share": case.tower_flops / (case.tower_flops + case.language_flops),
                "flops_ratio": case.first_flops_ratio,
                "over_flops": over,
                "within": bool(1 / WITHIN <= over <= WITHIN),
            }
            rows.append(_row(name, case, result[name]))
            print(" | ".join(rows[-1]), flush=True)
    far = [name for name, case in result.items() if not case["within"]]
    said = f"Not within {WITHIN} of the promise: {', '.join(far)}." if far else (
        f"Every case is within {WITHIN} of what its FLOPs promise."
    )  # fmt: skip
    print(said)
    where = f"{arguments.threads} thread(s) of {platform.machine()}, {arguments.clock} time"
    keeps = " ".join(f"{keep:g}" for keep in arguments.keep)
    words = f"--rounds {arguments.rounds} --keep {keeps} --clock {arguments.clock}"
    page = [
        f"`python benchmarks/ttft.py {words}` on {datetime.now(UTC):%Y-%m-%d}: "
        f"{where}; shape `{shape.name}`, fp32, random weights; {full.image_tokens} image and "
        f"{TEXT} text tokens, {arguments.rounds} interleaved rounds; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {time.monotonic() - began:.0f} s.",
        "",
        *markdown(
            (
                *("case and share of tokens", "tokens", "encode ms", "prefill ms", "sum ms"),
                *("ratio", "tower's share of FLOPs", "FLOP ratio", "over the promise"),
            ),
            rows,
        ),
        "",
        said,
    ]
    if arguments.docs:
        write_section(Path(arguments.docs), "ttft", page)
    finish(result)


def _row(name, case, found):
    low, high = found["first_interval"]
    return (
        f"`{name}`",
        str(found["tokens"]),
        *(f"{1e3 * part.median:.0f}" for part in (case.encode, case.prefill, case.first)),
        f"{found['first_ratio']:.3f} ({low:.3f} to {high:.3f})",
        f"{100 * found['tower_share']:.0f}%",
        f"{found['flops_ratio']:.3f}",
        f"{found['over_flops']:.2f}x",
    )


if __name__ == "__main__":
    main()
