"""The first stage's restorer from unit parameters.

One parameter holds the restorer and, inside its part of [0, 1], how much is recovered; ranges that
a restorer declares have parameters of their own. Only the first stage restores: later ones drop
what is left of its choice.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunetune.budget import every_for, restored_part
from prunetune.space.ranges import Values, is_open, searched

if TYPE_CHECKING:
    from prunetune.config import Stage
    from prunetune.restorers import Restorer

# Recovering every n-th token: from half of the kept tokens down to a sixteenth of them.
_MOST_RESTORED, _RESTORED_RANGE = 0.5, 8.0
# The end of a choice's part of [0, 1] belongs to the next choice.
_INSIDE = 1.0 - 1e-6


class RestorerCodec:
    """Decodes the restorer of a first stage, and back.

    Args:
        allowed: Names of restorers; ``"none"`` for nothing.
        ranges: Of a study, see ``space/ranges.py``.
    """

    def __init__(self, allowed: Sequence[str], ranges: Mapping[str, Values] | None = None) -> None:
        self.allowed, self.ranges = tuple(allowed), ranges or {}

    def names(self) -> dict[str, str]:
        """Return the parameters and what each decides."""
        kinds = self._kinds()
        names: dict[str, str] = {}
        if len(self.allowed) > 1 or any("every" in k.model_fields for k in kinds.values()):
            names["restorer"] = f"one of: {', '.join(self.allowed)}; and how much it gives back"
        for name, kind in kinds.items():
            fields = searched(kind, name, self.ranges).items()
            names |= {f"{name}.{f}": t.shown or f for f, t in fields if is_open(t)}
        return names

    def _kinds(self) -> "dict[str, type[Restorer]]":
        from prunetune.restorers import RESTORERS

        return {name: RESTORERS.get(name) for name in self.allowed if name != "none"}

    def decode(
        self, units: Mapping[str, float], share: float, *, selected: bool = False
    ) -> "Restorer | None":
        """Return the restorer of a stage that leaves ``share`` of the tokens.

        Where a selector chooses what is kept (``selected``), none can that chooses by itself.
        """
        from prunetune.space.units import decode_field

        unit, names = units.get("restorer", 0.0), self.allowed
        index = min(int(unit * len(names)), len(names) - 1)
        name = names[index]
        if name == "none":
            return None
        kind = self._kinds()[name]
        if selected and kind.chooses():
            return None
        data: dict[str, Any] = {
            field: decode_field(
                t,
                units.get(f"{name}.{field}", 0.5),
                whole=kind.model_fields[field].annotation is int,
            )
            for field, t in searched(kind, name, self.ranges).items()
        }
        if "every" in kind.model_fields and "every" not in data:
            part = _MOST_RESTORED * _RESTORED_RANGE ** -min(unit * len(names) - index, _INSIDE)
            data["every"] = every_for(part, share)
        restorer = kind(name=name, **data)
        return restorer if restorer.least_retention() <= share else None

    def encode(self, stage: "Stage") -> dict[str, float]:
        """Return the parameters that decode to a stage's restorer, or to the nearest one."""
        from prunetune.space.units import encode_field

        names, restorer = self.allowed, stage.restorer
        name = restorer.name if restorer else "none"
        if name not in names:
            return {"restorer": 0.5 / len(names)}
        inside, every = 0.5, getattr(restorer, "every", None)
        if every is not None and stage.retention < 1.0:
            part = restored_part(every, stage.retention)
            inside = math.log(_MOST_RESTORED / part) / math.log(_RESTORED_RANGE)
        found = {"restorer": (names.index(name) + min(max(inside, 0.0), _INSIDE)) / len(names)}
        if restorer is not None:
            for field, t in searched(type(restorer), name, self.ranges).items():
                found[f"{name}.{field}"] = encode_field(t, getattr(restorer, field))
        return found
