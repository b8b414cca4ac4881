"""Configs, prompts and engines for tests with vLLM; all engines of a file run in one child."""

import dataclasses

import pytest

from prunetune.config import PruningConfig
from prunetune.vllm.jobs import installed

needs_vllm = pytest.mark.skipif(not installed(), reason="needs vLLM: make test-vllm")
EAGER = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 8}
PLAIN = {**EAGER, "enable_prefix_caching": False}
CHUNKED = {"enable_prefix_caching": True, "enable_chunked_prefill": True, "block_size": 32}


def config_for(model_type, layers, positions="original", **stage):
    """Return a config whose near ties are few.

    Selectors such as dpp choose among equals by the last bits: on the embedded model's pictures
    their sets differ between two attention kernels of transformers, too.
    """
    first = {
        "layer": 0,
        "retention": 0.2,
        "scorers": [
            {"name": "cls_attention", "weight": 0.6},
            {"name": "context_entropy", "weight": 0.5},
            {"name": "coverage", "weight": 0.7},
        ],
        "restorer": {"name": "similarity_merge"},
        **stage,
    }
    return PruningConfig.parse(
        {
            "format": "prunetune.config",
            "version": 2,
            "model": {"model_type": model_type, "num_layers": layers},
            "separators": "drop",
            "positions": positions,
            "stages": [first],
        }
    )


def in_pairs(samples, count):
    """Return samples of two pictures of several sizes."""
    sizes = [(128, 128), (128, 64), (64, 128), (128, 96), (100, 140)]
    made = []
    for i in range(count):
        one, two = samples[i].images[0], samples[(7 * i + 11) % len(samples)].images[0]
        images = (one.resize(sizes[i % 5]), two.resize(sizes[(3 * i + 1) % 5]))
        made.append(dataclasses.replace(samples[i], images=images))
    return made


def same(ours, theirs):
    """Return how many answers are the same."""
    return sum(a.ids == b.ids for a, b in zip(ours, theirs, strict=True))


def same_texts(ours, theirs):
    """Return how many texts are the same, spaces around them apart."""
    return sum(a.strip() == b.strip() for a, b in zip(ours, theirs, strict=True))
