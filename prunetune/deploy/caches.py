"""Where a model's output holds its cache, and how a forward takes one: by type, not by name."""

import inspect
from typing import Any

from transformers.cache_utils import Cache


def cache_of(output: Any) -> Any:
    """Return the cache in what a forward or ``generate`` returned, or None.

    Args:
        output: A mapping, as transformers' model outputs are.
    """
    return next((value for value in output.values() if isinstance(value, Cache)), None)


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """Return the argument that gives a cache to a model's forward; releases differ in its name."""
    parameters = inspect.signature(model.forward).parameters.values()
    # Annotations are types or their texts.
    name = next(p.name for p in parameters if "Cache" in str(p.annotation))
    return {name: cache}
