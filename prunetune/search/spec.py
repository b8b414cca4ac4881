"""The study spec: everything a search is told. TOML in and out; stored with the study."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunetune.budget import FLOOR, check_keep
from prunetune.errors import ConfigError
from prunetune.files import write_atomically

Metric = Literal["cosine", "kl", "cosine+kl"]
FREE_FIELDS = frozenset({"trials", "timeout"})
"""What may differ when a study is resumed: it changes how long is searched, not what."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpaceSpec(_Frozen):
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


class StudySpec(_Frozen):
    """What a search is told; flags of the command line override it.

    Attributes:
        model: ``tiny``, an alias, a hub id or a folder.
        revision: Hub revision.
        data: Calibration source; None for the one shipped for the model.
        held_out: Held-out source; None for the one shipped, or a split of ``data`` by image.
        samples: Calibration samples used at most; None for all.
        keep: Budget: mean retention over all decoder layers, met exactly.
        trials: Finished trials (complete or pruned) the study ends with, earlier runs included.
        timeout: Seconds after which this run starts no further trial.
        seed: Of the sampler and of the order of the samples.
        sampler: ``tpe`` (multivariate), ``tpe-uni``, ``gp``, ``cmaes``, ``qmc`` or ``random``.
        startup: Random points before the sampler models anything.
        trial_pruner: Optuna's early stopping, sample by sample.
        metric: What is minimised.
        space: What is searched over.
        presets: Enqueued as the first trials, moved onto the budget; the baselines are all presets,
            whatever is enqueued.
        rescored: Best trials scored on all samples before one is chosen.
    """

    model: str = Field(default="tiny", min_length=1)
    revision: str | None = None
    data: str | None = None
    held_out: str | None = None
    samples: int | None = Field(default=None, ge=1)
    keep: float = 0.25
    trials: int = Field(default=100, ge=1)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    sampler: Literal["tpe", "tpe-uni", "gp", "cmaes", "qmc", "random"] = "tpe"
    startup: int = Field(default=10, ge=1)
    trial_pruner: Literal["wilcoxon", "none"] = "wilcoxon"
    metric: Metric = "cosine"
    space: SpaceSpec = Field(default_factory=SpaceSpec)
    presets: tuple[str, ...] = ("topv", "fastervlm", "fastv", "uniform")
    rescored: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "StudySpec":
        from prunetune.presets import read_preset

        check_keep(self.keep, self.space.floor)
        for name in self.presets:
            read_preset(name)
        return self

    @property
    def study_name(self) -> str:
        """Name of the study unless one is given: Optuna dashboard's front page shows only this."""
        return f"{self.model}/keep{self.keep:g}/{self.metric}"

    @classmethod
    def parse(cls, data: Any, origin: str = "study spec") -> "StudySpec":
        """Validate plain data.

        Raises:
            ConfigError: One line that names the field, the value received and what is allowed.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            from prunetune.config import describe

            raise ConfigError(f"{origin}: {describe(error)}") from None

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "StudySpec":
        """Read a TOML file; ``overrides`` (flags) replace its values, ``space`` key by key.

        Raises:
            ConfigError: The file is missing, is not TOML, or is not a valid spec.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"cannot read study spec {str(path)!r}: {reason}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
        changes = dict(overrides or {})
        if isinstance(data.get("space"), dict) and isinstance(changes.get("space"), Mapping):
            changes["space"] = {**data["space"], **changes["space"]}
        return cls.parse({**data, **changes}, origin=str(path))

    def to_toml(self) -> str:
        """Return the spec as TOML: stable order, fields that are None left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def save(self, path: str | Path) -> Path:
        """Write the spec whole or not at all, and return its path.

        Raises:
            ConfigError: The file cannot be written.
        """
        try:
            return write_atomically(Path(path), self.to_toml().encode())
        except OSError as error:
            raise ConfigError(
                f"cannot write study spec {str(path)!r}: {error.strerror or error}"
            ) from None


def difference(stored: StudySpec, now: StudySpec) -> list[str]:
    """Return what keeps a study from being resumed, one ``field (stored -> now)`` each."""
    before, after = _flat(stored.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return [
        f"{field} ({before.get(field)!r} -> {after.get(field)!r})"
        for field in sorted({*before, *after} - FREE_FIELDS)
        if before.get(field) != after.get(field)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out
