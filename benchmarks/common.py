"""What the benchmarks share: interleaved rounds, medians, one JSON line at the end."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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
