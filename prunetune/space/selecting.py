"""The selector that all stages of a config share, from unit parameters.

One parameter holds the selector; ranges that selectors declare have parameters of their own, and
``scope`` is one for all of them. Later stages have the first one's selector: they choose among
what it left, by the same rule.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunetune.errors import ConfigError
from prunetune.space.ranges import Values, is_open, searched
from prunetune.space.units import Units, decode_field, encode_field, pick, place

if TYPE_CHECKING:
    from prunetune.config import Stage
    from prunetune.registry import Tunable
    from prunetune.selectors import Selector

TOP = "top"
"""The highest scores: a config has no selector then, unless a range asks for more of it."""
_SCOPE = "scope"


class SelectorCodec:
    """Decodes the selector of a config, and back.

    Args:
        allowed: Names of selectors.
        ranges: Of a study, see ``space/ranges.py``.
        question: Whether the model can give the question's tokens to selectors.

    Raises:
        ConfigError: A selector needs the question, and the model cannot give it.
    """

    def __init__(
        self, allowed: Sequence[str], ranges: Mapping[str, Values], *, question: bool
    ) -> None:
        from prunetune.selectors import SELECTORS

        self.allowed = tuple(allowed)
        self._kinds: dict[str, type[Selector]] = {
            name: SELECTORS.get(name)
            for name in allowed
            if name != TOP or any(where.startswith(f"{TOP}.") for where in ranges)
        }
        self._fields: dict[str, dict[str, Tunable]] = {}
        # Fields that make the choice depend on the prompt as soon as they leave their default.
        self._asking: set[str] = set()
        for name, kind in self._kinds.items():
            if "question" in kind(name=name).needs and not question:
                raise ConfigError(
                    f"space.selectors: received {name}, which needs the question's tokens; this "
                    "model cannot give them"
                )
            self._fields[name] = {}
            for field, t in searched(kind, name, ranges).items():
                asks = _asks(kind, name, field, t)
                if asks and not question:
                    continue
                if asks and f"{name}.{field}" not in ranges:
                    self._asking.add(f"{name}.{field}")
                self._fields[name][field] = t
        self._own_scope = {name for name in self._kinds if f"{name}.{_SCOPE}" in ranges}

    def uses(self) -> dict[str, frozenset[str]]:
        """Return which scorers each selector weighs by itself."""
        return {name: kind(name=name).uses_scorers for name, kind in self._kinds.items()}

    def names(self) -> dict[str, str]:
        """Return the parameters and what each decides."""
        names: dict[str, str] = {}
        if len(self.allowed) > 1:
            names["selector"] = f"what chooses the kept set, one of: {', '.join(self.allowed)}"
        for name, fields in self._fields.items():
            for field, t in fields.items():
                if is_open(t):
                    where = self._parameter(name, field)
                    more = " (above 0.5; else not)" if where in self._asking else ""
                    names[where] = f"{t.shown or field}{more}"
        return names

    def decode(self, units: Mapping[str, float]) -> "Selector | None":
        """Return the selector; None for the highest scores."""
        name = pick(self.allowed, units.get("selector", 0.0))
        if name not in self._kinds:
            return None
        kind = self._kinds[name]
        data: dict[str, Any] = {}
        for field, t in self._fields[name].items():
            where = self._parameter(name, field)
            unit = units.get(where, 0.5)
            if where in self._asking:
                if unit <= 0.5:
                    continue
                unit = 2.0 * unit - 1.0
            data[field] = decode_field(t, unit, whole=kind.model_fields[field].annotation is int)
        return kind(name=name, **data)

    def encode(self, stage: "Stage") -> Units:
        """Return the parameters that decode to a stage's selector, or to the nearest one."""
        selector = stage.selector
        if selector is None and TOP in self._kinds:
            selector = self._kinds[TOP](name=TOP)
        name = TOP if selector is None else selector.name
        found = {"selector": place(self.allowed, name)}
        for field, t in self._fields.get(name, {}).items():
            where, value = self._parameter(name, field), getattr(selector, field)
            unit = encode_field(t, value)
            if where in self._asking:
                default = self._kinds[name].model_fields[field].default
                unit = 0.25 if value == default else 0.5 + 0.5 * max(unit, 1e-6)
            found[where] = unit
        return found

    def _parameter(self, name: str, field: str) -> str:
        return _SCOPE if field == _SCOPE and name not in self._own_scope else f"{name}.{field}"


def _asks(kind: "type[Selector]", name: str, field: str, t: "Tunable") -> bool:
    """Tell whether a field at the upper end of its range needs the question, and not by default."""
    value = decode_field(t, 1.0, whole=kind.model_fields[field].annotation is int)
    asked = kind.model_validate({"name": name, field: value}).needs - kind(name=name).needs
    return "question" in asked
