"""Lazy tables from names to classes, and the search range of what a class leaves open."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from prunetune.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Tunable:
    """Framework-neutral search range of a hyperparameter, put in ``Annotated``.

    Attributes:
        low: Lowest value.
        high: Highest value.
        log: Whether the range is searched on a logarithmic scale; of 1 + value where low is 0.
        choices: Allowed values instead of a range.
        levels: Number of values the range is cut into, its ends among them, at least 2; 0 is a
            continuous range. Few levels make trials meet again, and what was computed for one
            value be found again. Every level has four significant digits.
        shown: What the range is for, in a few words, for listings.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    shown: str = ""
    levels: int = 0

    def decode(self, unit: float) -> Any:
        """Map ``unit`` in [0, 1] onto the range (or the choices)."""
        if self.choices:
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        if self.levels:
            level = min(int(unit * self.levels), self.levels - 1)
            value = float(f"{self._at(level / (self.levels - 1)):.4g}")
            return min(max(value, self.low), self.high)
        return self._at(unit)

    def values(self) -> tuple[Any, ...]:
        """Return all values in order; empty for a continuous range."""
        if self.choices:
            return self.choices
        return tuple(self.decode((level + 0.5) / self.levels) for level in range(self.levels))

    def _at(self, unit: float) -> float:
        if self.log and not self.low:
            return float((1.0 + self.high) ** unit - 1.0)
        if self.log:
            return float(self.low * (self.high / self.low) ** unit)
        return float(self.low + unit * (self.high - self.low))


class Registry(Generic[T]):
    """Maps names to classes of one kind, importing a class only when it is asked for.

    A third-party package adds an entry through the entry-point group ``prunetune.scorers``,
    ``prunetune.selectors``, ``prunetune.restorers`` or ``prunetune.families``.

    Args:
        kind: What the entries are, for messages and the entry-point group, e.g. ``"scorer"``.
        base: ``"module:Class"`` that every entry must derive from.
        table: Name to ``"module:Class"``.
    """

    def __init__(self, kind: str, base: str, table: dict[str, str]) -> None:
        self.kind = kind
        self.group = "prunetune." + (kind[:-1] + "ies" if kind.endswith("y") else kind + "s")
        self._base = base
        self._builtin = dict(table)
        self._table: dict[str, str] | None = None
        self._loaded: dict[str, type[T]] = {}

    def _entries(self) -> dict[str, str]:
        if self._table is None:
            table = dict(self._builtin)
            for entry in entry_points(group=self.group):
                if entry.name in table:
                    raise ConfigError(
                        f"{self.kind} {entry.name!r} is registered twice: by {table[entry.name]} "
                        f"and by {entry.value}; uninstall or rename one of them"
                    )
                table[entry.name] = entry.value
            self._table = table
        return self._table

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries()))

    def __contains__(self, name: object) -> bool:
        return name in self._entries()

    def get(self, name: str) -> type[T]:
        """Return the class registered under ``name``.

        Raises:
            ConfigError: The name is unknown (the message suggests near names and lists all), or
                the entry is not a subclass of the kind's base class.
        """
        if name in self._loaded:
            return self._loaded[name]
        table = self._entries()
        if name not in table:
            raise ConfigError(self.unknown(name))
        loaded: type[T] = _load(table[name])
        base = _load(self._base)
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise ConfigError(
                f"{self.kind} {name!r} ({table[name]}) does not derive from {self._base}"
            )
        self._loaded[name] = loaded
        return loaded

    def unknown(self, name: str) -> str:
        """Return the one-line message for a name that is not in the table."""
        near = get_close_matches(name, list(self), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown {self.kind} {name!r}; known: {', '.join(self)}{hint}"


def _load(path: str) -> type:
    module, _, attribute = path.partition(":")
    loaded: type = getattr(import_module(module), attribute)
    return loaded
