"""prunetune: search, freeze and apply visual-token pruning of vision-language models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunetune.config import PruningConfig
    from prunetune.pixels.processors import resized
    from prunetune.runtime import apply
    from prunetune.study.run import search

__version__ = "0.1.0"
__all__ = ["PruningConfig", "__version__", "apply", "resized", "search"]

_LAZY = {
    "PruningConfig": "prunetune.config",
    "apply": "prunetune.runtime",
    "resized": "prunetune.pixels.processors",
    "search": "prunetune.study.run",
}


def __getattr__(name: str) -> Any:
    # Lazy: the deployment never imports optuna, and `prunetune --help` never imports torch.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'prunetune' has no attribute {name!r}")
