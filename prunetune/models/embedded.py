"""The embedded models: today's in the package, earlier ones in the repository only.

Figures of earlier releases rest on the model of their day. It stays by its number in a checkout, as
``training/tiny-N/`` with ``model/`` and ``data/``, so that they can be repeated.
"""

import re
from pathlib import Path

from prunetune.errors import ConfigError

NAME = "tiny"
EDITION = 2
"""Number of today's model: ``tiny-2`` is ``tiny``. The next model and its sets raise it."""
PACKAGE = Path(__file__).resolve().parents[1]
EMBEDDED = PACKAGE / "embedded" / NAME
_NUMBERED = re.compile(rf"{NAME}-([1-9][0-9]{{0,3}})")


def edition_of(name: str | None) -> int | None:
    """Return which embedded model, or set of one, a name means; None: none of them."""
    if name == NAME:
        return EDITION
    match = _NUMBERED.fullmatch(name or "")
    number = int(match[1]) if match else 0
    return number if 1 <= number <= EDITION else None


def is_embedded(name: str | None) -> bool:
    """Whether a name means a model, or a set, that was shipped with a release."""
    return edition_of(name) is not None


def shipped_data(model: str | None) -> str:
    """Return the shipped set that fits a model: its own, else today's."""
    return model if model and is_embedded(model) else NAME


def folder_of(name: str, part: str) -> Path:
    """Return the folder of an embedded model.

    Args:
        name: ``tiny`` or ``tiny-N``.
        part: ``model``, or ``data`` for its calibration and held-out sets.

    Raises:
        ConfigError: It is an earlier one that only a checkout keeps, or the set is missing.
    """
    edition = edition_of(name)
    if edition == EDITION:
        return EMBEDDED if part == "model" else _todays_data()
    folder = PACKAGE.parent / "training" / f"{NAME}-{edition}" / part
    if not folder.is_dir():
        raise ConfigError(
            f"{name!r} is an earlier embedded {part}, kept in the repository and not in the "
            f"package: {folder} does not exist; run from a checkout, or use {NAME!r}"
        )
    return folder


def _todays_data() -> Path:
    # In the wheel, or beside the package in a checkout.
    for root in (PACKAGE, PACKAGE.parent):
        if (folder := root / "calibration_data" / NAME).is_dir():
            return folder
    raise ConfigError(f"the shipped set {NAME!r} is missing beside {PACKAGE}; reinstall prunetune")
