"""What the tests of planted bugs share."""

from collections.abc import Callable, Mapping
from typing import Any

from prunetune.errors import UnsupportedModelError

# What a check, a tensor operation or the runtime's own refusal raises counts, not a mistake in
# the mutant.
RED = (AssertionError, RuntimeError, IndexError, UnsupportedModelError)


def pairs_of(mutants: Mapping[Any, tuple[Callable[[], None], ...]]) -> list[tuple[Any, Any]]:
    """Return every planted bug with every check that it has to turn red."""
    return [(mutant, check) for mutant, checks in mutants.items() for check in checks]
