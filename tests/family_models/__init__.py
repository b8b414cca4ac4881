"""Tiny random models of the real classes, one file a ``model_type``.

A file here is all that a family needs to be tested: the contract in ``test_families.py`` and the
reference find it by its name. It holds one subclass of ``TinyFamily`` and its instance ``FAMILY``.
"""

import importlib
import pkgutil
from typing import Any

import pytest

from family_models._base import (
    IMAGE,
    LAYERS,
    VIDEO,
    VOCAB,
    Batch,
    Piece,
    TinyFamily,
    needs,
)

FAMILIES = tuple(
    sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
)


def family(of: Any) -> TinyFamily:
    """Return the tiny family of a ``model_type`` or of a model."""
    name = of if isinstance(of, str) else of.config.model_type
    found: TinyFamily = importlib.import_module(f"{__name__}.{name}").FAMILY
    assert found.model_type == name
    return found


def each(*names: str) -> list[Any]:
    """Return pytest parameters of the named families (none: all), skipped where too new."""
    return [pytest.param(n, marks=family(n).marks) for n in names or FAMILIES]


__all__ = [
    "FAMILIES", "IMAGE", "LAYERS", "VIDEO", "VOCAB", "Batch", "Piece", "TinyFamily", "each",
    "family", "needs",
]  # fmt: skip
