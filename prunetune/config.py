"""The pruning config: schema, load, save, digest. One small JSON file that a deployment loads."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from prunetune.errors import ConfigError
from prunetune.files import read_plain, write_atomically
from prunetune.hub.shared import OnHub
from prunetune.hub.uris import is_uri
from prunetune.messages import allowed, describe, shown
from prunetune.pixels.field import AnyPixels, shrinks
from prunetune.provenance import Frozen, ModelRef, Number, Provenance, Whole
from prunetune.restorers import RESTORERS, Restorer
from prunetune.schedules import check_schedule, check_version
from prunetune.scorers import SCORERS, Scorer
from prunetune.selectors import SELECTORS, Selector
from prunetune.texts import check, parse_json

__all__ = ["FORMAT", "VERSIONS", "ModelRef", "Provenance", "PruningConfig", "Stage"]

FORMAT: Final = "prunetune.config"
VERSIONS: Final = (1, 2)
"""Of the schema: 2 has selectors, mass, exits and pixels."""
MOST_BYTES = 16 << 20


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


Retention = Annotated[Number, Field(ge=0.0, le=1.0), allowed("a number above 0 and at most 1")]
Mass = Annotated[Number, Field(ge=0.0, le=1.0), allowed("a number from 0 to 1")]
Layer = Annotated[Whole, Field(ge=0), allowed("a whole number of at least 0")]
AnyScorer = Annotated[SerializeAsAny[Scorer], BeforeValidator(_scorer)]
AnyRestorer = Annotated[SerializeAsAny[Restorer], BeforeValidator(_restorer)]
AnySelector = Annotated[SerializeAsAny[Selector], BeforeValidator(_selector)]


class Stage(Frozen):
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
        if self.selector is not None or self.mass > 0 or self.retention == 0:
            return True
        if self.restorer is not None and self.restorer.since > 1:
            return True
        return any(scorer.since > 1 for scorer in self.scorers)

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for name, unset in (("selector", None), ("mass", 0.0)):
            if data.get(name) == unset:
                # What uses nothing new keeps its bytes, and so its digest.
                data.pop(name, None)
        return data


class PruningConfig(Frozen, OnHub):
    """A frozen pruning config: where, how much, with which weights.

    Attributes:
        format: Always ``"prunetune.config"``.
        version: Schema version; files of version 1 load in every later release, and what uses
            nothing newer is written as version 1.
        model: Which model it is for.
        separators: Whether image tokens that are not patches stay (``"keep"``, thinned evenly when
            they would take more than half of a stage) or go at the first stage (``"drop"``).
        positions: ``"original"`` position ids, or ``"packed"``: renumbered after a layer-0 stage.
        pixels: How much smaller pictures are made before the processor; None: not at all. Of what
            is left of their tokens the stages' retentions are shares. Since version 2.
        stages: Ordered; layers strictly rise, retentions never rise. There may be none where
            ``pixels`` make pictures smaller.
        provenance: Where it comes from.
    """

    format: Literal["prunetune.config"] = FORMAT
    version: Literal[1, 2] = 1
    model: ModelRef
    separators: Literal["keep", "drop"] = "keep"
    positions: Literal["original", "packed"] = "original"
    pixels: AnyPixels | None = None
    stages: tuple[Stage, ...]
    provenance: Provenance = Field(default_factory=Provenance)

    @model_validator(mode="before")
    @classmethod
    def _write_as(cls, data: Any) -> Any:
        """Say the version of a config that is made in code."""
        if isinstance(data, dict) and "version" not in data:
            stages = data.get("stages") or ()
            new = any(isinstance(stage, Stage) and stage.is_new for stage in stages)
            new = new or data.get("pixels") is not None
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
        check_version(self.version, self.stages)
        self._check_pixels()
        check_schedule(self.stages, self.model.num_layers)
        if self.positions == "packed" and (not self.stages or self.stages[0].layer != 0):
            first = f"is at layer {self.stages[0].layer}" if self.stages else "does not exist"
            raise ValueError(
                "positions: 'packed' renumbers after a layer-0 stage, but the first stage "
                f"{first}; use 'original'"
            )
        return self

    def _check_pixels(self) -> None:
        if self.version < 2 and self.pixels is not None:
            raise ValueError('version: received 1, but pixels are of version 2; write "version": 2')
        if not self.stages and not shrinks(self.pixels):
            raise ValueError(
                "stages: received none, allowed 1 or more stages; none only where pixels make "
                'pictures smaller, e.g. {"share": 0.5}'
            )

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if data.get("pixels") is None:
            # What uses nothing new keeps its bytes, and so its digest.
            data.pop("pixels", None)
        return data

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
                f"{origin}: format: received {shown(data.get('format'))}, allowed {FORMAT!r}; "
                "this is not a prunetune config"
            )
        version = data.get("version")
        if type(version) is not int or version not in VERSIONS:
            raise ConfigError(
                f"{origin}: version: received {_version(version)}, this release reads versions "
                f"{' and '.join(map(str, VERSIONS))}; upgrade prunetune or export the config again"
            )
        try:
            check(data)
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {describe(error)}") from None
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None
        except RecursionError:
            raise ConfigError(f"{origin}: nested too deeply for a config") from None

    @classmethod
    def load(cls, path: str | Path) -> "PruningConfig":
        """Read a config file, of this machine or of the hub (``hf://org/name/file[@revision]``).

        Raises:
            ConfigError: The file is missing, is not JSON, or is not a valid config.
        """
        if is_uri(path):
            return cls.fetched(path)
        return cls.read(Path(path), str(path))

    @classmethod
    def read(cls, path: Path, origin: str) -> "PruningConfig":
        """Read a file of this machine, which messages call ``origin``; see ``load``."""
        try:
            text = read_plain(path, MOST_BYTES).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            undecoded = isinstance(error, UnicodeDecodeError)
            reason = "it is not UTF-8 text" if undecoded else getattr(error, "strerror", error)
            raise ConfigError(
                f"cannot read config {origin!r}: {reason}; give a file that `prunetune export` "
                "or `prunetune search` wrote (config.json in a run's folder)"
            ) from None
        if not text.strip():
            raise ConfigError(f"{origin}: the file is empty; export the config again")
        try:
            data = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"{origin}: not JSON: {error}") from None
        return cls.parse(data, origin=origin)

    def to_json(self) -> str:
        """Return the config as JSON: stable field order, same bytes for the same config."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the config whole or not at all, and return its path.

        Raises:
            ConfigError: The file cannot be written.
        """
        if is_uri(path):
            raise ConfigError(
                f"cannot write config {str(path)!r}: it is on the hub; write a file, and send it "
                "there with: prunetune push FILE ORG/NAME"
            )
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


def _version(value: Any) -> str:
    # Python writes no number of thousands of digits.
    huge = isinstance(value, int) and value.bit_length() > 1024
    return "a number of more than 300 digits" if huge else shown(value)
