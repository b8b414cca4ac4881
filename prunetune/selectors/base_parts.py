"""A part of a quota: a share, a sum of scores of its own and a selector of its own."""

import json
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
)

from prunetune.selectors import SELECTORS
from prunetune.selectors.base import Selector


def _selector(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    name = value.get("name")
    if not isinstance(name, str):
        raise ValueError(f"a selector needs a 'name', one of: {', '.join(SELECTORS)}")
    if name not in SELECTORS:
        raise ValueError(SELECTORS.unknown(name))
    try:
        text = json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"selector {name!r} is not plain data: {error}") from None
    # As JSON, like a stage's own parts: a bool is no number, and a list is a tuple.
    return SELECTORS.get(name).model_validate_json(text, strict=True)


class PartScorer(BaseModel):
    """One of the stage's scorers, with another weight than it has in the stage's sum.

    Attributes:
        name: Of a scorer that the stage lists; its hyperparameters stand there.
        weight: Signed score weight in this part, in [-1, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    weight: float = Field(default=1.0, ge=-1.0, le=1.0)


class Part(BaseModel):
    """One share of a quota.

    Attributes:
        share: Of the count, above 0.
        scorers: What its scores are the weighted sum of; empty is the stage's own sum.
        selector: Chooses among what the parts before it left; any but a quota.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(gt=0.0, le=1.0)
    scorers: tuple[PartScorer, ...] = ()
    selector: Annotated[SerializeAsAny[Selector], BeforeValidator(_selector)] = Field(
        default_factory=lambda: _selector({"name": "top"})
    )

    @field_validator("selector")
    @classmethod
    def _flat(cls, value: Selector) -> Selector:
        if value.name == "quota":
            raise ValueError("received 'quota', allowed any other selector in a part of a quota")
        return value
