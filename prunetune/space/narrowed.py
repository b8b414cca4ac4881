"""What of the search space a study searches: the ``[space]`` table of a study spec."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunetune.budget import FLOOR, ModelFacts
from prunetune.errors import ConfigError
from prunetune.space.ranges import Values, check_ranges

SELECTORS = ("top", "cover", "dpp")
"""Searched unless told otherwise: the best of each idea; the others are a name away."""
FIRST_SCORERS = ("topv", "cls_attention", "context_entropy", "last_query", "coverage", "tile_prior")
"""What an empty ``scorers`` meant before there were selectors."""
FIRST_RESTORERS = ("none", "uniform_recovery")
"""What ``restorers`` were by default then."""
_BEFORE: dict[str, Any] = {
    "version": 1,
    "selectors": ("top",),
    "mass": (0.0,),
    "per_crop": (False,),
}
# Every release wrote these, so a table that has all of them, but no version, is of an old one.
_ALWAYS_WRITTEN = frozenset(
    {"min_stages", "max_stages", "scorers", "floor", "per_stage_weights", "restorers"}
    | {"separators", "positions"}
)


def _restorers() -> tuple[str, ...]:
    """Return what is searched unless told otherwise: cell means are one scorer's own."""
    from prunetune.restorers import RESTORERS

    return (*FIRST_RESTORERS, *(name for name in ("similarity_merge",) if name in RESTORERS))


MOST_STAGES = 3


class SpaceSpec(BaseModel):
    """What a study searches over.

    Attributes:
        min_stages: Fewest stages of a schedule.
        max_stages: Most stages of a schedule.
        scorers: Scorers that are summed; empty means every one the model can give but ``random``.
        layers: First and last layer a stage may have; None means all.
        stage_layers: Layer of every stage, where layers and their number are not searched.
        floor: Smallest retention of a stage.
        per_stage_weights: Each stage has its own score weights.
        fixed_weights: Score weights are 1 and later stages reuse the first scores: not searched.
        selectors: What may choose the kept set; ``"top"`` are the highest scores.
        mass: Allowed values of the stages' ``mass``; ``[0.0]`` turns it off.
        exit: Whether all image tokens may leave at a late layer, from two thirds of the depth on.
        per_crop: Whether scorers rank in each view, in families that see a picture as several.
        parts: ``"layer-0"``: only what an engine can do that takes a pruned prompt (one stage
            before the language model, no mass); ``"flash"``: only what runs under FlashAttention
            (no mass); ``"all"``.
        ranges: Ranges for any field of a scorer, selector or restorer that is searched, and for
            retentions; see ``space/ranges.py``.
        pixels: Levels of pixels: False for the full picture alone; True for those that can meet the
            budget; or shares of a picture's pixels, each in (0, 1], 1 being the full picture.
        restorers: What may put dropped tokens' information back; ``"none"`` for nothing. A selector
            other than ``"top"`` has none that chooses by itself.
        separators: Allowed values of the config's ``separators``.
        positions: Allowed values of the config's ``positions``.
        version: Of what is left open here. 1, in studies of releases before there were selectors:
            ``"top"`` alone, no mass, no ranking by view, and the scorers of then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_stages: int = Field(default=1, ge=1, le=MOST_STAGES)
    max_stages: int = Field(default=MOST_STAGES, ge=1, le=MOST_STAGES)
    scorers: tuple[str, ...] = ()
    layers: tuple[int, int] | None = None
    stage_layers: tuple[int, ...] = Field(default=(), max_length=3)
    floor: float = Field(default=FLOOR, gt=0.0, lt=1.0)
    per_stage_weights: bool = False
    fixed_weights: bool = False
    selectors: tuple[str, ...] = Field(default=SELECTORS, min_length=1)
    mass: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=1)
    exit: bool = False
    per_crop: tuple[bool, ...] = Field(default=(False, True), min_length=1)
    parts: Literal["all", "layer-0", "flash"] = "all"
    ranges: dict[str, Values] = Field(default_factory=dict)
    restorers: tuple[str, ...] = Field(default_factory=_restorers, min_length=1)
    separators: tuple[Literal["keep", "drop"], ...] = Field(default=("keep", "drop"), min_length=1)
    positions: tuple[Literal["original", "packed"], ...] = Field(
        default=("original",), min_length=1
    )
    pixels: bool | tuple[float, ...] = False
    version: Literal[1, 2] = 2

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, data: Any) -> Any:
        """Give a table that an older release wrote the meaning that it had."""
        if isinstance(data, Mapping) and is_old(data):
            return {**_BEFORE, **data}
        return data

    @model_validator(mode="after")
    def _check(self) -> "SpaceSpec":
        from prunetune.restorers import RESTORERS
        from prunetune.scorers import SCORERS
        from prunetune.selectors import SELECTORS as TABLE

        if self.min_stages > self.max_stages:
            raise ValueError(
                f"min_stages: received {self.min_stages}, allowed 1 to {self.max_stages}"
            )
        if self.layers and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(
                f"layers: received {list(self.layers)}, allowed a first layer of at least 0 "
                "and a last layer not before it"
            )
        self._check_fixed()
        for name in self.scorers:
            if name not in SCORERS:
                raise ValueError(SCORERS.unknown(name))
        for name in self.selectors:
            if name not in TABLE:
                raise ValueError(TABLE.unknown(name))
        for name in self.restorers:
            if name != "none" and name not in RESTORERS:
                raise ValueError(f"{RESTORERS.unknown(name)}; or 'none'")
        if any(not 0.0 <= value <= 1.0 for value in self.mass):
            raise ValueError(f"mass: received {list(self.mass)}, allowed numbers from 0 to 1")
        lists = ("scorers", "selectors", "mass", "per_crop", "restorers", "separators", "positions")
        for field in lists:
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: received {list(values)}, each may appear once")
        self._check_pixels()
        self._check_parts()
        check_ranges(self.ranges, len(self.stage_layers) or self.max_stages)
        return self

    def _check_pixels(self) -> None:
        levels = () if isinstance(self.pixels, bool) else self.pixels
        if any(not 0.0 < share <= 1.0 for share in levels) or len(set(levels)) != len(levels):
            raise ValueError(
                f"pixels: received {list(levels)}, allowed true, false, or different shares of a "
                "picture's pixels, above 0 and at most 1"
            )

    def _check_parts(self) -> None:
        said = f'parts: received "{self.parts}"'
        if self.parts != "all" and 0.0 not in self.mass:
            raise ValueError(f"{said} beside mass {list(self.mass)}, allowed 0 among them")
        if self.parts != "layer-0":
            return
        if (self.layers and self.layers[0]) or (self.stage_layers and self.stage_layers != (0,)):
            raise ValueError(f"{said}, but layers leave out layer 0 or have more; leave them out")
        if self.exit or self.min_stages > 1:
            raise ValueError(f"{said}, which has one stage; leave exit and min_stages out")

    def restricted(self) -> "SpaceSpec":
        """Return the space that ``parts`` leaves."""
        if self.parts == "all":
            return self
        less: dict[str, Any] = {"mass": (0.0,)}
        if self.parts == "layer-0":
            less |= {"max_stages": 1}
            less |= {} if self.stage_layers else {"layers": (0, 0)}
        return self.model_copy(update=less)

    def narrowed_to(self, facts: ModelFacts) -> "SpaceSpec":
        """Return the space that a model leaves which can drop tokens at its first layers only.

        Args:
            facts: Of the model: the last layer at which it can, and why; whether it has states.

        Raises:
            ConfigError: Something was asked for that it cannot do.
        """
        last = facts.last_stage
        if last is None:
            return self
        allowed = "layer 0" if last == 0 else f"layers 0 to {last}"
        first = self.stage_layers[-1] if self.stage_layers else (self.layers or (0, 0))[0]
        unheld = facts.states and (self.exit or 0.0 not in self.mass)
        if first > last or unheld or self.min_stages > last + 1:
            asked = f"layers from {first} on" if first > last else "an exit, mass or more stages"
            no_mass = " and no mass" if facts.states else ""
            raise ConfigError(
                f"space: received {asked}, allowed one stage a layer at {allowed}{no_mass} for "
                f"{facts.model_type}: {facts.limit}; leave that out"
            )
        less: dict[str, Any] = {"max_stages": min(self.max_stages, last + 1)}
        less |= {"mass": (0.0,)} if facts.states else {}
        if not self.stage_layers:
            start, end = self.layers or (0, last)
            less |= {"layers": (start, min(end, last))}
        return self.model_copy(update=less)

    def _check_fixed(self) -> None:
        layers = self.stage_layers
        if any(a >= b for a, b in zip((-1, *layers), layers)):
            raise ValueError(
                f"stage_layers: received {list(layers)}, allowed layers that strictly rise from "
                "0 or later"
            )
        if layers and self.layers:
            raise ValueError("stage_layers and layers exclude each other; give one")
        if self.fixed_weights and self.per_stage_weights:
            raise ValueError("fixed_weights and per_stage_weights exclude each other; give one")


def is_old(data: Mapping[str, Any]) -> bool:
    """Tell whether a release before there were selectors wrote a ``[space]`` table."""
    return data.keys() >= _ALWAYS_WRITTEN and "version" not in data and "selectors" not in data
