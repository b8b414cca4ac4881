"""What a stored trial says, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunetune.budget import stated_retention
from prunetune.config import PruningConfig


@dataclass(frozen=True)
class TrialFacts:
    """One trial.

    Attributes:
        number: Of the trial.
        state: ``complete``, ``stopped early``, ``failed``, ``running`` or ``waiting``.
        values: One an objective; of a trial that was stopped early, the estimate. May be empty.
        config: What it measured; None where there is none, or none this release can read.
        attrs: The trial's user attributes.
        samples: Metric of each calibration sample that it was measured on, by index.
        seconds: How long it took.
    """

    number: int
    state: str
    values: tuple[float, ...]
    config: PruningConfig | None
    attrs: Mapping[str, Any] = field(repr=False)
    samples: Mapping[int, float] = field(repr=False)
    seconds: float | None

    @property
    def complete(self) -> bool:
        """Whether it was measured on all samples."""
        return self.state == "complete"

    @property
    def measured(self) -> bool:
        """Whether it has values, estimates included."""
        return bool(self.values)

    @property
    def schedule(self) -> tuple[tuple[int, float], ...]:
        """Layer and retention of every stage."""
        stages = self.config.stages if self.config else ()
        return tuple((stage.layer, stage.retention) for stage in stages)

    @property
    def retention(self) -> float | None:
        """Mean retention over all decoder layers."""
        stored = self.attrs.get("mean_retention")
        if isinstance(stored, float | int):
            return float(stored)
        if self.config is None:
            return None
        return stated_retention(self.config)

    @property
    def name(self) -> str:
        """Such as ``trial 12`` or ``trial 0 (preset topv)``."""
        preset = self.attrs.get("preset")
        return f"trial {self.number}" + (f" (preset {preset})" if preset else "")

    def number_of(self, key: str) -> float | None:
        """Return a user attribute that is a finite number, or None."""
        value = self.attrs.get(key)
        known = isinstance(value, float | int) and math.isfinite(value)
        return float(value) if known and value is not None else None
