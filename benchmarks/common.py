"""What the benchmarks share: interleaved rounds, medians, one JSON line at the end."""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from prunetune.files import write_atomically
from prunetune.runtime import frame
from prunetune.runtime.choice import taps
from prunetune.runtime.vision.tower import VisionTap


def name_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``: which of the embedded models, on its own sets."""
    parser.add_argument("--model", default="tiny", help="tiny or tiny-N, with its own sets")


class Clock:
    """Adds up the seconds spent in functions.

    Args:
        now: The clock; by default the thread's processor time, so that other work does not count.
    """

    def __init__(self, now: Callable[[], float] = time.thread_time) -> None:
        self.now = now
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, its seconds added under ``name``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += self.now() - start

        return run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the runtime's scoring while inside."""
        with (
            mock.patch.object(frame, "choose", self.timed("choose", frame.choose)),
            mock.patch.object(taps, "last_query_row", self.timed("row", taps.last_query_row)),
            mock.patch.object(VisionTap, "capture", self.timed("tower", VisionTap.capture)),
        ):
            yield


def interleave(
    cases: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time every case once a round, in turn, so that a slow minute hits all of them alike.

    Returns:
        Seconds per case, one entry a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(-warmup, rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median over rounds of ``name``'s time over ``to``'s in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to]))


def finish(result: dict[str, Any]) -> None:
    """Print the machine-readable result as the last line."""
    print(json.dumps(result))


def write_section(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between a page's ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page}: no section between {begin} and {end}")
    body = "\n".join(["", *lines, ""])
    write_atomically(page, f"{head}{begin}{body}{end}{tail}".encode())


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows)]


def mid_llava(layers: int = 12, width: int = 512, side: int = 39, heads: int = 8) -> nn.Module:
    """Return a random fp32 LLaVA whose image takes ``side * side`` tokens; the tower is small."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side * 4,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=1000,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=999, vision_feature_layer=-2
    )
    return LlavaForConditionalGeneration(config).eval()


def mid_llava_next(layers: int = 12, width: int = 512, side: int = 17, heads: int = 8) -> nn.Module:
    """Return a random fp32 LLaVA-NeXT; a square image takes 5 views of ``side * side`` patches."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = mid_llava(layers, width, side, heads).config
    size = side * 4
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=config.vision_config,
            text_config=config.text_config,
            image_token_index=999,
            vision_feature_layer=-2,
            image_grid_pinpoints=[[2 * size, 2 * size]],
        )
    ).eval()


def mid_model(family: str, layers: int, *, tiny: bool = False) -> nn.Module:
    """Return the random model of a family; a tiny one only proves that a script runs."""
    if family == "llava_next":
        return mid_llava_next(layers, 64, 5) if tiny else mid_llava_next(layers)
    return mid_llava(layers, 64, 9) if tiny else mid_llava(layers)
