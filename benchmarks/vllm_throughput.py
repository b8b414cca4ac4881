"""Requests a second and the time to the first token in vLLM, on a mid-size random LLaVA-NeXT.

    python benchmarks/vllm_throughput.py            # needs vLLM: make test-vllm makes .venv-vllm
    python benchmarks/vllm_throughput.py --tiny     # only proves that it runs

At 1, 8 and 32 requests at once: unpruned, a config of layer 0 (``--config``; else scores and a
covering set at ``--keep``), and ``uniform`` at the same count. Pictures of this model always take
five views, so that there is no smaller picture with as few tokens. Run it with OMP_NUM_THREADS.
"""

import argparse
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import finish, markdown
from mid import PATCH, SIDE, load_mid

from prunetune.config import PruningConfig
from prunetune.deploy.vllm_bench import Served, bench_in_vllm
from prunetune.errors import ConfigError

STAGE = {
    "scorers": [{"name": "cls_attention"}, {"name": "coverage", "weight": 0.5}],
    "selector": {"name": "cover"},
}


def saved(folder: Path, layers: int, width: int, side: int) -> int:
    """Save the model with its processor as vLLM loads it, and return its number of layers."""
    loaded = load_mid(layers, width, side)
    text = loaded.model.config.text_config
    # An end would end a request early; none is generated before the count asked for.
    text.eos_token_id = None
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return int(text.num_hidden_layers)


def config_at(keep: float, layers: int) -> PruningConfig:
    """Return a config of layer 0 that keeps a share."""
    data: dict[str, Any] = {
        "format": "prunetune.config",
        "version": 2,
        "model": {"model_type": "llava_next", "num_layers": layers},
        "separators": "drop",
        "positions": "original",
        "stages": [{"layer": 0, "retention": keep, **STAGE}],
    }
    return PruningConfig.parse(data)


def table(cases: tuple[Served, ...], kv_bytes: int) -> list[str]:
    """Return the lines of a table; tokens and bytes of the cache are a request's."""
    columns = ["at once", "case", "requests/s", "ratio", "first token, ms", "ratio"]
    rows = [
        [
            str(case.concurrency),
            case.name,
            f"{case.rate.median:.2f} ({case.rate.low:.2f} to {case.rate.high:.2f})",
            f"{case.rate_ratio:.2f}",
            f"{1e3 * case.first.median:.0f}",
            f"{case.first_ratio:.2f}",
            f"{case.prompt_tokens:.0f}",
            f"{case.prompt_tokens * kv_bytes / 2**20:.1f}",
            case.verdict.partition(":")[0],
        ]
        for case in cases
    ]
    return markdown([*columns, "KV tokens", "KV MiB", "verdict"], rows)


def main() -> None:
    """Measure and print a table, then JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kv-gib", type=int, default=3, help="of vLLM's cache on a CPU")
    parser.add_argument("--tiny", action="store_true", help="the smallest size")
    args = parser.parse_args()
    if args.tiny:
        args.layers, args.requests, args.rounds, args.concurrency = 2, 2, 1, [2]
    width, side = (256, 5) if args.tiny else (512, SIDE)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(args.kv_gib)
    with tempfile.TemporaryDirectory() as place:
        layers = saved(Path(place), args.layers, width, side)
        try:
            result = bench_in_vllm(
                config_at(args.keep, layers),
                place,
                concurrency=args.concurrency,
                requests=args.requests,
                rounds=args.rounds,
                new_tokens=args.new_tokens,
                size=(2 * side * PATCH, 2 * side * PATCH),
                engine={"max_model_len": 2048, "enforce_eager": True},
            )
        except ConfigError as error:
            raise SystemExit(f"error: {error}") from None
    # Keys and values of float32.
    print("\n".join(table(result.cases, 2 * 4 * layers * width)))
    finish({"layers": layers, "keep": args.keep, **asdict(result)})


if __name__ == "__main__":
    main()
