"""A promise: what a config may lose against the unpruned model."""

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Loss = Literal["accuracy", "gap", "agreement"]


class Promise(BaseModel):
    """What may be lost at most, with 95% confidence on held-out data.

    Attributes:
        loss: ``accuracy``: share of questions that the unpruned model answers and the pruned one
            does not, minus the reverse; ``gap``: the mean gap; ``agreement``: share of samples with
            another most likely next token.
        most: What it may be at most: a share, or a gap as it is.
        cheapest: What is cheap: ``cost``, the study's second objective, or ``ms``, the measured
            milliseconds to the first token on the device of the search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Loss
    most: float = Field(ge=0.0, le=2.0)
    cheapest: Literal["cost", "ms"] = "cost"

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        # Specs of releases that knew no other come back as the same bytes.
        return {k: v for k, v in data.items() if (k, v) != ("cheapest", "cost")}

    @model_validator(mode="after")
    def _check(self) -> "Promise":
        if self.loss != "gap" and not self.most < 1.0:
            raise ValueError(f"most: received {self.most:g}, allowed shares from 0 to below 1")
        return self

    @property
    def words(self) -> str:
        """What is promised, in words."""
        if self.loss == "accuracy":
            return f"loses at most {_short(100 * self.most)} points of accuracy"
        if self.loss == "gap":
            return f"has a gap of at most {_short(self.most)}"
        return f"gives the unpruned model's next token on {_short(100 - 100 * self.most)}% or more"

    def shown(self, value: float) -> str:
        """Return a loss in the unit of the promise."""
        if self.loss == "gap":
            return f"{value:.4f}"
        return f"{100 * value:.1f}{' points' if self.loss == 'accuracy' else '%'}"


def promised(
    max_drop: float | None, max_gap: float | None, min_agreement: float | None
) -> dict[str, object] | None:
    """Return what flags promise, as data; None where none was given.

    Args:
        max_drop: Points of accuracy.
        max_gap: Mean gap.
        min_agreement: Share of samples with the same most likely next token.

    Raises:
        ValueError: More than one is given, or one is out of its range.
    """
    given = {
        "--max-drop": (max_drop, 100.0, "points of accuracy from 0 to below 100"),
        "--max-gap": (max_gap, 2.0, "a gap from 0 to below 2"),
        "--min-agreement": (min_agreement, 1.0, "a share above 0 and up to 1"),
    }
    said = [flag for flag, (value, _, _) in given.items() if value is not None]
    if len(said) > 1:
        raise ValueError(f"received {' and '.join(said)}; a search keeps one promise, give one")
    if not said:
        return None
    value, end, allowed = given[said[0]]
    assert value is not None
    inside = 0.0 < value <= end if said[0] == "--min-agreement" else 0.0 <= value < end
    if not (math.isfinite(value) and inside):
        percent = said[0] == "--min-agreement" and 1 < value <= 100
        hint = f"; for {value:g}% write {value / 100:.6g}" if percent else ""
        raise ValueError(f"{said[0]}: received {value:g}, allowed {allowed}{hint}")
    loss, most = {
        "--max-drop": ("accuracy", value / 100.0),
        "--max-gap": ("gap", value),
        "--min-agreement": ("agreement", round(1.0 - value, 12)),
    }[said[0]]
    return {"loss": loss, "most": most}


def _short(value: float) -> str:
    return f"{value:.6g}"
