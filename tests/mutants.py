"""What the tests of planted bugs share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from prunetune.errors import UnsupportedModelError

# What a check, a tensor operation or the runtime's own refusal raises counts, not a mistake in
# the mutant.
RED = (AssertionError, RuntimeError, IndexError, UnsupportedModelError)


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Replace ``owner.name`` by ``change(original)``."""
    patch.setattr(owner, name, change(getattr(owner, name)))


def pairs_of(mutants: Mapping[Any, tuple[Callable[[], None], ...]]) -> list[tuple[Any, Any]]:
    """Return every planted bug with every check that it has to turn red."""
    return [(mutant, check) for mutant, checks in mutants.items() for check in checks]


def planted(
    checks: Iterable[Callable[[], None]], mutants: Mapping[Any, tuple[Callable[[], None], ...]]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return two tests: no check is red by itself, and each planted bug turns its checks red."""

    @pytest.mark.parametrize("check", checks, ids=lambda c: c.__name__)
    def green(check: Callable[[], None]) -> None:
        check()

    @pytest.mark.parametrize(("mutant", "check"), pairs_of(mutants), ids=lambda f: f.__name__)
    def red(mutant: Any, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
        mutant(monkeypatch)
        with pytest.raises(RED):
            check()

    return green, red
