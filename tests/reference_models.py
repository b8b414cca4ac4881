"""Models, batches and configs made by hand; ``family_models`` holds what differs by family."""

from typing import Any

import torch
from family_models import FAMILIES, IMAGE, LAYERS, VOCAB, Batch, each, family, needs
from family_models.llava_next import PINPOINTS

from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.scorers import SCORERS

# These run through every combination; all families through the contract in test_families.py.
THOROUGH = ("llava", "llava_next")
TILE = {"llava": 20, "llava_next": 16}
ROWS = {name: family(name).rows for name in THOROUGH}
SCHEDULES = {
    "2+4": ((2, 0.5, ("random",)), (4, 0.2, ())),
    "0+1+3": ((0, 0.7, ("cls_attention",)), (1, 0.45, ("last_query",)), (3, 0.3, ("coverage",))),
    "2": ((2, 0.35, ("topv", "cls_attention", "tile_prior")),),
    "0": ((0, 0.4, ("random", "coverage")),),
}


def tiny(name: str, attention: str = "sdpa", **text: Any) -> torch.nn.Module:
    """Return a fresh copy of a random fp32 model, the same weights at every call."""
    return family(name).model(attention, **text)


def make_batch(model: Any, rows: Any = None, seed: int = 0) -> Batch:
    """Build a left-padded batch; see ``TinyFamily.rows`` for what a row is."""
    return family(model).batch(model, rows, seed)


def make_config(
    model: Any, schedule: Any = "2+4", separators: str = "keep", positions: str = "original"
) -> PruningConfig:
    """Return a config from ``(layer, retention, scorer names or dicts[, restorer])`` stages."""
    stages = []
    wanted = SCHEDULES.get(str(schedule), schedule)
    if str(schedule) in SCHEDULES:
        wanted = available(wanted, family(model))
    if family(model).hybrid:
        wanted = before_layer_0(wanted)
    for layer, retention, scorers, *rest in wanted:
        named = [{"name": s} if isinstance(s, str) else s for s in scorers]
        restorer = rest[0] if rest else None
        stages.append(Stage(layer=layer, retention=retention, scorers=named, restorer=restorer))
    ref = ModelRef(model_type=model.config.model_type, num_layers=LAYERS)
    return PruningConfig(
        model=ref, separators=separators, positions=positions, stages=tuple(stages)
    )


def available(schedule: Any, spec: Any) -> list[Any]:
    """Return a schedule with ``coverage`` for scorers that a family has no input for."""
    return [
        (layer, share, tuple("coverage" if n in spec.refused_scorers else n for n in names), *rest)
        for layer, share, names, *rest in schedule
    ]


def before_layer_0(schedule: Any) -> list[Any]:
    """Return a schedule's first stage moved before the language model.

    What has no input there is replaced.
    """
    layer, retention, scorers, *rest = schedule[0]
    if layer:
        known = [s for s in scorers if isinstance(s, str) and SCORERS.get(s)(name=s).usable_at(0)]
        scorers = tuple(known) or ("random", "coverage")
    return [(0, retention, scorers, *rest)]


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
    kinds = ["full_attention"] * LAYERS
    if family(config.model.model_type).hybrid:
        kinds = family(config.model.model_type).kinds
    for layer in (k for k in range(LAYERS) if kinds[k] == "full_attention"):
        passed = [stage for stage in config.stages if stage.layer <= layer]
        rows = []
        for images, text in zip(batch.images, batch.valid.sum(1).tolist()):
            left = counts_after(images, passed)[-1] if passed else images
            rows.append(text - sum(images) + sum(left))
        lengths.append(max(rows) if passed else batch.length)
    return lengths


def windowed_kv(lengths: list[int], windows: list[int | None]) -> list[int]:
    """Return cache lengths of layers that keep the last tokens of a window only."""
    return [n if w is None else min(n, w - 1) for n, w in zip(lengths, windows, strict=True)]


__all__ = [
    "FAMILIES", "IMAGE", "LAYERS", "PINPOINTS", "ROWS", "SCHEDULES", "THOROUGH", "TILE", "VOCAB",
    "Batch", "available", "counts_after", "each", "family", "make_batch", "make_config", "needs",
    "predicted_kv", "tiny",
]  # fmt: skip
