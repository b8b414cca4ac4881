"""Search: a study over where, how much and with which weights to prune, and what it costs."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunetune.search.run import search

__all__ = ["search"]


class _Callable(ModuleType):
    # `prunetune.search` is the public function; once this package is imported, it is this module.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _search()(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name == "search":
        return _search()
    raise AttributeError(f"module 'prunetune.search' has no attribute {name!r}")


def _search() -> Any:
    from prunetune.search.run import search

    return search


sys.modules[__name__].__class__ = _Callable
