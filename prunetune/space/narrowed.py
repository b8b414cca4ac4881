"""What of the search space a study searches: the ``[space]`` table of a study spec."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunetune.budget import FLOOR


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
        restorers: What may put dropped tokens' information back; ``"none"`` for nothing.
        separators: Allowed values of the config's ``separators``.
        positions: Allowed values of the config's ``positions``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_stages: int = Field(default=1, ge=1, le=3)
    max_stages: int = Field(default=3, ge=1, le=3)
    scorers: tuple[str, ...] = ()
    layers: tuple[int, int] | None = None
    stage_layers: tuple[int, ...] = Field(default=(), max_length=3)
    floor: float = Field(default=FLOOR, gt=0.0, lt=1.0)
    per_stage_weights: bool = False
    fixed_weights: bool = False
    restorers: tuple[str, ...] = Field(default=("none", "uniform_recovery"), min_length=1)
    separators: tuple[Literal["keep", "drop"], ...] = Field(default=("keep", "drop"), min_length=1)
    positions: tuple[Literal["original", "packed"], ...] = Field(
        default=("original",), min_length=1
    )

    @model_validator(mode="after")
    def _check(self) -> "SpaceSpec":
        from prunetune.restorers import RESTORERS
        from prunetune.scorers import SCORERS

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
        for name in self.restorers:
            if name != "none" and name not in RESTORERS:
                raise ValueError(f"{RESTORERS.unknown(name)}; or 'none'")
        for field in ("scorers", "restorers", "separators", "positions"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: received {list(values)}, each may appear once")
        return self

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
