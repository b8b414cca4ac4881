"""Names of tensors: checkpoints that transformers 5.2x wrote, and vLLM's classes."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

_NEW, _OLD = "vision_tower.", "vision_tower.vision_model."


def accept_new_names(model: type) -> type:
    """Return the subclass of a vLLM model that loads both spellings of a CLIP-like tower.

    transformers 5.2x writes ``vision_tower.encoder...`` where the hub's checkpoints, and vLLM up to
    0.33, have ``vision_tower.vision_model.encoder...``.
    """
    base: Any = model

    class Both(base):  # type: ignore[misc]
        def load_weights(self, weights: Iterable[tuple[str, Any]]) -> Any:
            inner = hasattr(getattr(self, "vision_tower", None), "vision_model")
            return super().load_weights(_renamed(weights) if inner else weights)

    Both.__name__, Both.__qualname__ = base.__name__, base.__qualname__
    return Both


def _renamed(weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, tensor in weights:
        inside = name.removeprefix("model.")
        if inside.startswith(_NEW) and not inside.startswith(_OLD):
            name = name.replace(_NEW, _OLD, 1)
        yield name, tensor


def use_new_names(model_type: str) -> None:
    """Make vLLM's own class of a model type load both spellings, where nothing is pruned."""
    from vllm import ModelRegistry

    from prunetune.vllm.fits import ARCHITECTURES

    if (arch := ARCHITECTURES.get(model_type)) is not None:
        own = getattr(import_module(arch.module), arch.own)
        ModelRegistry.register_model(arch.name, accept_new_names(own))
