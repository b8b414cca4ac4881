"""What pruning pays on a GPU: real-size models, random bf16 weights, every preset and budget.

LLaVA-NeXT-7B (2,880 patches and 48 separators a picture) and LLaVA-1.5-7B (576), sdpa and, where it
can be imported, FlashAttention-2, batch 1 and 8: encoder, prefill, decode and KV bytes at keep 1,
0.5, 0.25, 0.1 and 0.05; what scoring costs; decoding with a static cache, which transformers
compiles on CUDA. Nothing is downloaded; needs torch and transformers, not the search. Times are
medians of interleaved rounds, as many as fit into --seconds; ratios are of the same round.

    PYTHONPATH=. python benchmarks/gpu.py                        # under 8 minutes on an H200
    PYTHONPATH=. python benchmarks/gpu.py --out "$OUT" --docs '' # table and numbers into a folder
    PYTHONPATH=. python benchmarks/gpu.py --tiny --docs ''       # on a CPU: that it runs
"""

import argparse
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from common import Clock, finish, write_section
from gpu_page import Row, Scoring, page, table

from prunetune.budget import facts_of, flops_ratio
from prunetune.config import PruningConfig
from prunetune.deploy.memory import MIB
from prunetune.deploy.request import Request, random_request
from prunetune.deploy.shapes import SHAPES, Shape, build, count_parameters
from prunetune.deploy.timing import Run, Stopwatch, spread
from prunetune.deploy.verdict import median_of, ratio
from prunetune.errors import ConfigError
from prunetune.families import Family
from prunetune.presets import load_preset, preset_names
from prunetune.runtime import apply
from prunetune.runtime.apply import family_of

DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
KEEPS, TEXT = (0.5, 0.25, 0.1, 0.05), 64
MOST_ROUNDS = 9
COMPILE_SECONDS = 100


class Budget:
    """Wall-clock seconds shared among the blocks that are left."""

    def __init__(self, seconds: float, blocks: int) -> None:
        self.end, self.blocks = time.monotonic() + seconds, blocks

    def next(self) -> float:
        """Return when the next block has to end."""
        share = (self.end - time.monotonic()) / max(1, self.blocks)
        self.blocks -= 1
        return time.monotonic() + share


def configs(shape: Shape) -> tuple[dict[tuple[str, float], PruningConfig], list[str]]:
    """Return every preset at every budget, and which of them cannot be met."""
    found, missing = {}, []
    for keep in KEEPS:
        for name in preset_names():
            try:
                found[name, keep], _ = load_preset(
                    name, model_type=shape.model_type, num_layers=shape.num_layers, keep=keep
                )
            except ConfigError as error:
                missing.append(f"{shape.name}, `{name}` at {keep:g}: {error}")
    return found, missing


def rounds_until(cases: dict[Any, Callable[[], Run]], end: float) -> dict[Any, list[Run]]:
    """Run interleaved rounds until ``end``: a warm-up, then at least one that counts."""
    runs: dict[Any, list[Run]] = {key: [] for key in cases}
    for number in range(-1, MOST_ROUNDS):
        start = time.monotonic()
        for key, case in cases.items():
            run = case()
            if number >= 0:
                runs[key].append(run)
        # Another round would not fit.
        if number >= 0 and time.monotonic() + (time.monotonic() - start) > end:
            break
    return runs


def block(
    family: Family, name: str, request: Request, plans: dict[Any, PruningConfig], end: float
) -> list[Row]:
    """Measure one shape, kernel and batch."""
    watch = Stopwatch(family)
    new = 9

    configs: dict[tuple[str, float], PruningConfig | None] = {("unpruned", 1.0): None, **plans}
    cases = {key: watch.case(plan, request.inputs, new) for key, plan in configs.items()}
    runs = rounds_until(cases, end)
    full = runs["unpruned", 1.0]
    facts = facts_of(family, image_tokens=request.image_tokens, text_tokens=request.text)
    rows = []
    for (preset, keep), mine in runs.items():
        faster = {part: ratio(full, mine, part) for part in ("prefill", "decode")}
        stages = plans[preset, keep].stages if keep < 1 else ()
        rows.append(
            Row(
                name,
                str(family.text_model.config._attn_implementation),
                len(request.inputs["input_ids"]),
                preset,
                keep,
                *(1e3 * median_of(mine, part) for part in ("encode", "prefill")),
                tuple(asdict(faster["prefill"]).values()),
                1 / flops_ratio(stages, facts),
                1e3 * median_of(mine, "decode"),
                tuple(asdict(faster["decode"]).values()),
                mine[0].kv_bytes / MIB,
                len(mine),
            )
        )
    return rows


@torch.no_grad()
def scoring(family: Family, rows: list[Row], request: Request, plans: dict) -> list[Scoring]:
    """Time the runtime's scoring inside pruned prefills at keep 0.1 (0.25 where that is least)."""
    watch = Stopwatch(family)
    unpruned = next(row for row in rows if row.preset == "unpruned")
    found = []
    for name in preset_names():
        config = plans.get((name, 0.1)) or plans.get((name, 0.25))
        if config is None:
            continue
        spent: dict[str, list[float]] = {"tower": [], "row": [], "choose": []}
        for number in range(6):
            clock = Clock(watch.now)
            with clock.running(), apply(family.model, config):
                family.model(**request.inputs, logits_to_keep=1)
            if number:
                for part, values in spent.items():
                    values.append(clock.seconds[part])
        parts = {part: 1e3 * spread(values).median for part, values in spent.items()}
        share = sum(parts.values()) / unpruned.prefill
        found.append(Scoring(unpruned.shape, unpruned.attn, unpruned.batch, name, share, parts))
    return found


def static_decode(family: Family, request: Request, config: PruningConfig) -> dict[str, str]:
    """Return ms a token with a static cache (compiled by transformers on CUDA), or what failed."""
    found = {}
    new = 33

    def late(number: int, where: object) -> None:
        raise TimeoutError(f"not done within {COMPILE_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(COMPILE_SECONDS)
    for name, plan in (("unpruned", None), ("pruned", config)):
        try:
            torch._dynamo.reset()
            times = []
            for _ in range(3):
                handle = None if plan is None else apply(family.model, plan)
                watch = Stopwatch(family)
                try:
                    # The prompt's forward alone, then with the answer: the difference is decoding.
                    ends = []
                    for length in (1, new):
                        start = watch.now()
                        family.model.generate(
                            **request.inputs,
                            max_new_tokens=length,
                            min_new_tokens=length,
                            do_sample=False,
                            cache_implementation="static",
                        )
                        ends.append(watch.now() - start)
                    times.append((ends[1] - ends[0]) / (new - 1))
                finally:
                    if handle is not None:
                        handle.remove()
            found[name] = f"{1e3 * min(times):.2f} ms a token"
        except Exception as error:  # whatever the compiler raises is the result
            line = " ".join(str(error).split())[:160]
            found[name] = f"failed: {type(error).__name__}: {line}"
    signal.alarm(0)
    return found


def card() -> str:
    if not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} thread(s)"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="shrunk shapes: that it runs")
    parser.add_argument("--seconds", type=float, default=270.0, help="for the interleaved rounds")
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("--docs", default=str(DOCS), help="page to write; empty: none")
    arguments = parser.parse_args()
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        parser.error("no GPU here; --tiny shows that the script runs")
    dtype = torch.float32 if arguments.tiny else torch.bfloat16
    flash = importlib.util.find_spec("flash_attn") is not None and device.type == "cuda"
    kernels = ["sdpa", *(["flash_attention_2"] if flash else [])]
    names = ("llava-1.5-7b", "llava-next-7b")
    shapes = {name: SHAPES[name].shrunk() if arguments.tiny else SHAPES[name] for name in names}
    # The longer prompts come last: what a block does not use goes to those after it.
    budget = Budget(arguments.seconds, len(names) * len(kernels) * 2)
    rows: list[Row] = []
    costs: list[Scoring] = []
    missing: list[str] = []
    failed = False
    static: dict[str, str] = {}
    for name, shape in shapes.items():
        plans, cannot = configs(shape)
        missing += cannot
        print(f"{name}: {count_parameters(shape.config()) / 1e9:.2f} billion weights", flush=True)
        family = family_of(build(shape, device=device, dtype=dtype, attn="sdpa"))
        for kernel in kernels:
            family.model.set_attn_implementation(kernel)
            for batch in (1, 8):
                request = random_request(
                    shape,
                    device=device,
                    dtype=dtype,
                    batch=batch,
                    images=1,
                    prompt_tokens=TEXT,
                    size=None,
                )
                try:
                    here = block(family, name, request, plans, budget.next())
                    rows += here
                    print("\n".join(table(here)), flush=True)
                    costs += scoring(family, here, request, plans)
                except (torch.OutOfMemoryError, ConfigError, RuntimeError) as error:
                    text = " ".join(str(error).split())[:200]
                    missing.append(f"{name}, {kernel}, batch {batch}: {text}")
                    print(missing[-1], flush=True)
                    failed = True
        if name == names[-1]:
            family.model.set_attn_implementation("sdpa")
            request = replace(request, inputs={k: v[:1] for k, v in request.inputs.items()})
            # A first stage at layer 1 or later: what compiled decoding is known to follow.
            static = static_decode(family, request, plans["topv", 0.5 if arguments.tiny else 0.1])
            print(static, flush=True)
        del family
        if device.type == "cuda":
            torch.cuda.empty_cache()
    result = {
        "command": "python benchmarks/gpu.py" + (" --tiny" if arguments.tiny else ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "card": card(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "text_tokens": TEXT,
        "dtype": str(dtype).removeprefix("torch."),
        "flash": "measured" if flash else "not importable here, not measured",
        "seconds": time.monotonic() - began,
        "static_decode": static,
        "not_measured": missing,
    }
    lines = page(result, rows, costs)
    data = {**result, "rows": [asdict(r) for r in rows], "scoring": [asdict(c) for c in costs]}
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "gpu.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
        (arguments.out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if arguments.docs:
        write_section(Path(arguments.docs), "gpu", lines)
    finish(data)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
