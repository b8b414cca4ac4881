"""Tiny random fp32 models of the real classes, and batches and configs made by hand."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from prunetune.config import ModelRef, PruningConfig, Stage

torch.set_num_threads(1)
IMAGE, VOCAB, LAYERS = 99, 120, 6
FAMILIES = ("llava", "llava_next")
TILE = {"llava": 20, "llava_next": 16}
PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48]]
# One row a prompt: a number is so many text tokens, a pair is an image of that height and width.
SQUARE = (20, 20)
ROWS = {
    "llava": ((3, SQUARE, 4), (1, SQUARE, 2, SQUARE, SQUARE, 3), (SQUARE, 5, SQUARE, 6)),
    "llava_next": ((3, (20, 32), 4), (1, (20, 60), (30, 34), 3), ((33, 12), 5, (32, 20), 2)),
}
SCHEDULES = {
    "2+4": ((2, 0.5, ("random",)), (4, 0.2, ())),
    "0+1+3": ((0, 0.7, ("cls_attention",)), (1, 0.45, ("last_query",)), (3, 0.3, ("coverage",))),
    "2": ((2, 0.35, ("topv", "cls_attention", "tile_prior")),),
    "0": ((0, 0.4, ("random", "coverage")),),
}


def needs(version: str, reason: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where transformers is older, and says what that one does."""
    here = Version(transformers.__version__)
    why = f"transformers {here}: {reason}; {version} does not"
    return pytest.mark.skipif(here < Version(version), reason=why)


@cache
def _model(family: str, attention: str, **text: Any) -> torch.nn.Module:
    torch.manual_seed(7)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=TILE[family], patch_size=4, initializer_range=0.2,
    )  # fmt: skip
    language = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=None, **text,
    )  # fmt: skip
    parts = {"vision_config": vision, "text_config": language, "image_token_id": IMAGE}
    if family == "llava":
        config = LlavaConfig(**parts)
        model = LlavaForConditionalGeneration(config)
    else:
        config = LlavaNextConfig(**parts, image_grid_pinpoints=PINPOINTS)
        model = LlavaNextForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.startswith("model.multi_modal_projector") and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.set_attn_implementation(attention)
    model.generation_config.pad_token_id = 0
    model.generation_config.suppress_tokens = [IMAGE]
    return model.eval()


def tiny(family: str, attention: str = "sdpa", **text: Any) -> torch.nn.Module:
    """Return a fresh copy of a random fp32 model, the same weights at every call."""
    return copy.deepcopy(_model(family, attention, **text))


@dataclass(frozen=True)
class Batch:
    """Model inputs, and how many tokens each image of each row has."""

    inputs: dict[str, Tensor]
    images: list[list[int]]

    @property
    def valid(self) -> Tensor:
        return self.inputs["attention_mask"].bool()

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


def _image(model: Any, size: tuple[int, int], seed: int) -> tuple[Tensor, int]:
    """Return an image's crops ``[tiles, 3, h, w]`` and its number of tokens."""
    family, random = model.config.model_type, torch.Generator().manual_seed(seed)
    side = TILE[family]
    if family == "llava":
        return torch.randn(1, 3, side, side, generator=random), (side // 4) ** 2
    from transformers.models.llava_next import modeling_llava_next as code

    tiles = code.image_size_to_num_patches(size, PINPOINTS, side)
    packed, _ = model.model.pack_image_features(
        [torch.zeros(tiles, (side // 4) ** 2, 1)], [size], "default", torch.zeros(1)
    )
    return torch.randn(tiles, 3, side, side, generator=random), len(packed[0])


def make_batch(model: Any, rows: Any = None, seed: int = 0) -> Batch:
    """Build a left-padded batch; see ``ROWS`` for what a row is."""
    random = torch.Generator().manual_seed(1000 + seed)
    ids, crops, sizes, images = [], [], [], []
    for row in rows or ROWS[model.config.model_type]:
        ids.append([])
        images.append([])
        for item in row:
            if isinstance(item, int):
                ids[-1] += torch.randint(2, IMAGE, (item,), generator=random).tolist()
                continue
            pixels, count = _image(model, item, seed * 100 + len(crops))
            crops.append(pixels)
            sizes.append(item)
            images[-1].append(count)
            ids[-1] += [IMAGE] * count
    width = max(map(len, ids))
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in ids]),
    }
    if crops and model.config.model_type == "llava":
        inputs["pixel_values"] = torch.cat(crops)
    elif crops:
        most = max(map(len, crops))
        pad = [torch.nn.functional.pad(c, (0,) * 7 + (most - len(c),)) for c in crops]
        inputs |= {"pixel_values": torch.stack(pad), "image_sizes": torch.tensor(sizes)}
    return Batch(inputs, images)


def make_config(
    model: Any, schedule: Any = "2+4", separators: str = "keep", positions: str = "original"
) -> PruningConfig:
    """Return a config from ``(layer, retention, scorer names or dicts[, restorer])`` stages."""
    stages = []
    for layer, retention, scorers, *rest in SCHEDULES.get(str(schedule), schedule):
        named = [{"name": s} if isinstance(s, str) else s for s in scorers]
        restorer = rest[0] if rest else None
        stages.append(Stage(layer=layer, retention=retention, scorers=named, restorer=restorer))
    ref = ModelRef(model_type=model.config.model_type, num_layers=LAYERS)
    return PruningConfig(
        model=ref, separators=separators, positions=positions, stages=tuple(stages)
    )


def counts_after(images: list[int], stages: Any) -> list[list[int]]:
    """Return tokens of each image alive after each stage, from the contract's rounding alone."""
    alive, out = list(images), []
    for stage in stages:
        alive = [max(1, min(now, int(stage.retention * n + 0.5))) for n, now in zip(images, alive)]
        out.append(alive)
    return out


def predicted_kv(batch: Batch, config: PruningConfig) -> list[int]:
    """Return the cache length of every decoder layer after the prefill."""
    lengths = []
    for layer in range(LAYERS):
        passed = [stage for stage in config.stages if stage.layer <= layer]
        rows = []
        for images, text in zip(batch.images, batch.valid.sum(1).tolist()):
            left = counts_after(images, passed)[-1] if passed else images
            rows.append(text - sum(images) + sum(left))
        lengths.append(max(rows) if passed else batch.length)
    return lengths
