"""The pruning config: schema, load, save, digest. One small JSON file that a deployment loads."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    model_serializer,
    model_validator,
)

from prunetune.errors import ConfigError
from prunetune.files import write_atomically
from prunetune.messages import allowed, describe
from prunetune.restorers import RESTORERS, Restorer
from prunetune.schedules import check_schedule
from prunetune.scorers import SCORERS, Scorer
from prunetune.selectors import SELECTORS, Selector

FORMAT: Final = "prunetune.config"
VERSIONS: Final = (1, 2)
"""Of the schema: 2 has selectors, mass and exits."""


def _scorer(value: Any) -> Any:
    return _component(value, SCORERS)


def _restorer(value: Any) -> Any:
    return _component(value, RESTORERS)


def _selector(value: Any) -> Any:
    return _component(value, SELECTORS)


def _component(value: Any, table: Any) -> Any:
    if not isinstance(value, dict):
        return value
    name = value.get("name")
    if not isinstance(name, str):
        raise ValueError(f"a {table.kind} needs a 'name', one of: {', '.join(table)}")
    if name not in table:
        raise ValueError(table.unknown(name))
    try:
        text = json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{table.kind} {name!r} is not plain data: {error}") from None
    # As JSON, so that a bool is no number, a text neither, and a list is a tuple.
    return table.get(name).model_validate_json(text, strict=True)


Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Retention = Annotated[Number, Field(ge=0.0, le=1.0), allowed("a number above 0 and at most 1")]
Mass = Annotated[Number, Field(ge=0.0, le=1.0), allowed("a number from 0 to 1")]
Layer = Annotated[Whole, Field(ge=0), allowed("a whole number of at least 0")]
Depth = Annotated[Whole, Field(ge=1), allowed("a whole number of at least 1")]
AnyScorer = Annotated[SerializeAsAny[Scorer], BeforeValidator(_scorer)]
AnyRestorer = Annotated[SerializeAsAny[Restorer], BeforeValidator(_restorer)]
AnySelector = Annotated[SerializeAsAny[Selector], BeforeValidator(_selector)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRef(_Frozen):
    """Which model a config is for.

    Attributes:
        model_type: The transformers ``model_type``; ``apply`` refuses any other.
        num_layers: Decoder layers; ``apply`` refuses any other number.
        name: Hub id, alias or folder the config was made with.
        revision: Hub revision, where known.
        fingerprint: sha256 of the architecture-defining config fields; another one only warns.
    """

    model_type: str
    num_layers: Depth
    name: str = ""
    revision: str | None = None
    fingerprint: str | None = None


class Stage(_Frozen):
    """One pruning step.

    Attributes:
        layer: 0 is before the language model, k >= 1 at the input of decoder layer k (0-based).
        retention: Share of the original image tokens (patches and separators) alive after the
            stage, cumulative and after restoring, in (0, 1]; since version 2 the last stage may
            have 0, from layer 1 on: an exit.
        scorers: Summed by score weight; empty means: reuse the previous stage's scores. A first
            stage may have none beside a selector: all patches then count alike.
        restorer: Puts information of dropped tokens back; None for none.
        selector: Chooses the set that is kept; None: the highest scores. Since version 2.
        mass: h of proportional attention: a kept token that stands for n gets h log(n) added to
            its key's logits in every later layer. 0: off. Since version 2.
    """

    layer: Layer
    retention: Retention
    scorers: tuple[AnyScorer, ...] = ()
    restorer: AnyRestorer | None = None
    selector: AnySelector | None = None
    mass: Mass = 0.0

    @property
    def is_new(self) -> bool:
        """Whether it has what files of version 1 cannot have."""
        return self.selector is not None or self.mass > 0 or self.retention == 0

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for name, unset in (("selector", None), ("mass", 0.0)):
            if data.get(name) == unset:
                # What uses nothing new keeps its bytes, and so its digest.
                data.pop(name, None)
        return data


class Provenance(_Frozen):
    """Where a config comes from; every field is optional, none changes what the config does.

    Attributes:
        study: Name of the study.
        trial: Number of the trial.
        gap: Mean gap on the calibration split.
        gap_ci: Bootstrap 95% interval of ``gap``.
        held_out_gap: Mean gap on the held-out split.
        mean_retention: Mean retention over all decoder layers.
        flops_ratio: Prefill FLOPs of the language model, pruned over unpruned.
        kv_ratio: Visual KV-cache share, pruned over unpruned.
        budget: What it was searched for: ``keep``, ``flops`` or ``kv_mib``, and its value.
        calibration_digest: Digest over the calibration pixels and texts.
        weights_digest: sha256 over samples of the weights, see ``prunetune.models.fingerprint``;
            with others ``apply`` warns.
        seed: Seed of the study.
        versions: Versions of the libraries it was made with.
        created: UTC time, ISO 8601.
    """

    study: str | None = None
    trial: Whole | None = None
    gap: Number | None = None
    gap_ci: tuple[Number, Number] | None = None
    held_out_gap: Number | None = None
    mean_retention: Number | None = None
    flops_ratio: Number | None = None
    kv_ratio: Number | None = None
    budget: dict[str, Number] | None = None
    calibration_digest: str | None = None
    weights_digest: str | None = None
    seed: Whole | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str | None = None

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for later in ("budget", "weights_digest"):
            if data.get(later) is None:
                # Files of older releases come back as the same bytes.
                data.pop(later, None)
        return data


class PruningConfig(_Frozen):
    """A frozen pruning config: where, how much, with which weights.

    Attributes:
        format: Always ``"prunetune.config"``.
        version: Schema version; files of version 1 load in every later release, and what uses
            nothing newer is written as version 1.
        model: Which model it is for.
        separators: Whether image tokens that are not patches stay (``"keep"``, thinned evenly when
            they would take more than half of a stage) or go at the first stage (``"drop"``).
        positions: ``"original"`` position ids, or ``"packed"``: renumbered after a layer-0 stage.
        stages: Ordered; layers strictly rise, retentions never rise.
        provenance: Where it comes from.
    """

    format: Literal["prunetune.config"] = FORMAT
    version: Literal[1, 2] = 1
    model: ModelRef
    separators: Literal["keep", "drop"] = "keep"
    positions: Literal["original", "packed"] = "original"
    stages: tuple[Stage, ...] = Field(min_length=1)
    provenance: Provenance = Field(default_factory=Provenance)

    @model_validator(mode="before")
    @classmethod
    def _write_as(cls, data: Any) -> Any:
        """Say the version of a config that is made in code."""
        if isinstance(data, dict) and "version" not in data:
            stages = data.get("stages") or ()
            new = any(isinstance(stage, Stage) and stage.is_new for stage in stages)
            return {**data, "version": 2 if new else 1}
        return data

    @property
    def prompt_dependent(self) -> bool:
        """Whether another question about the same picture can change what is kept."""
        return any(
            (stage.selector is not None and stage.selector.prompt_dependent)
            or any({"question", "last_query"} & scorer.needs for scorer in stage.scorers)
            for stage in self.stages
        )

    @model_validator(mode="after")
    def _check(self) -> "PruningConfig":
        new = [i for i, stage in enumerate(self.stages) if stage.is_new]
        if new and self.version == 1:
            raise ValueError(
                f"version: received 1, but stages.{new[0]} has a selector, mass or an exit, which "
                'are of version 2; write "version": 2'
            )
        check_schedule(self.stages, self.model.num_layers)
        if self.positions == "packed" and self.stages[0].layer != 0:
            raise ValueError(
                "positions: 'packed' renumbers after a layer-0 stage, but the first stage is at "
                f"layer {self.stages[0].layer}; use 'original'"
            )
        return self

    @classmethod
    def parse(cls, data: Any, origin: str = "config") -> "PruningConfig":
        """Validate plain data.

        Raises:
            ConfigError: One line that names the field, the value received and what is allowed.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"{origin}: expected a JSON object, received {type(data).__name__}")
        if data.get("format") != FORMAT:
            raise ConfigError(
                f"{origin}: format: received {data.get('format')!r}, allowed {FORMAT!r}; "
                "this is not a prunetune config"
            )
        version = data.get("version")
        if type(version) is not int or version not in VERSIONS:
            raise ConfigError(
                f"{origin}: version: received {version!r}, this release reads versions "
                f"{' and '.join(map(str, VERSIONS))}; upgrade prunetune or export the config again"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {describe(error)}") from None
        except RecursionError:
            raise ConfigError(f"{origin}: nested too deeply for a config") from None

    @classmethod
    def load(cls, path: str | Path) -> "PruningConfig":
        """Read a config file.

        Raises:
            ConfigError: The file is missing, is not JSON, or is not a valid config.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except (OSError, ValueError) as error:
            undecoded = isinstance(error, UnicodeDecodeError)
            reason = "it is not UTF-8 text" if undecoded else getattr(error, "strerror", error)
            raise ConfigError(
                f"cannot read config {str(path)!r}: {reason}; give a file that `prunetune export` "
                "or `prunetune search` wrote (config.json in a run's folder)"
            ) from None
        if not text.strip():
            raise ConfigError(f"{path}: the file is empty; export the config again")
        try:
            data = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {error}") from None
        return cls.parse(data, origin=str(path))

    def to_json(self) -> str:
        """Return the config as JSON: stable field order, same bytes for the same config."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the config whole or not at all, and return its path.

        Raises:
            ConfigError: The file cannot be written.
        """
        try:
            return write_atomically(Path(path), self.to_json().encode())
        except OSError as error:
            raise ConfigError(
                f"cannot write config {str(path)!r}: {error.strerror or error}"
            ) from None

    def digest(self) -> str:
        """Return a sha256 over everything but the provenance: what the config does."""
        data = self.model_dump(mode="json", exclude={"provenance"})
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return data
