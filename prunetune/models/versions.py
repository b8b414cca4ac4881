"""Releases that decide what is measured."""

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Return the versions of what decides a study's numbers."""
    found = {}
    for name in ("prunetune", "torch", "transformers", "optuna"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
