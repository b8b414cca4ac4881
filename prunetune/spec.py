"""The study spec: everything a search is told. TOML in and out; stored with the study."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from prunetune.budget import KINDS, Budget, Kind, ModelFacts, check_keep, make_budget
from prunetune.errors import ConfigError
from prunetune.files import read_plain, write_atomically
from prunetune.messages import check_kinds, describe
from prunetune.models.options import check_options
from prunetune.promise import Promise
from prunetune.space.narrowed import SpaceSpec
from prunetune.texts import parse_toml

__all__ = ["SpaceSpec", "StudySpec"]

Match = Literal["vqa", "exact", "contains"]
Metric = Literal["cosine", "kl", "cosine+kl", "kl-answer"]
_MOST_BYTES = 16 << 20
FIRST_LOOK = 16
"""Samples that a trial is measured on before it may be stopped."""
OWN_TOKENS = 8
"""Most tokens of the unpruned model's own answer that ``kl-answer`` follows."""
_DATA = ["match", "template_args", "allow_remote", "held_out_samples"]
_SINCE = ["processor", "promise", *_DATA, "refine"]
_KEEP, _KEEPS, _PROMISED = 0.25, (0.05, 0.5), (0.03, 0.75)


class StudySpec(BaseModel):
    """What a search is told; flags of the command line override it.

    Attributes:
        model: ``tiny``, an alias, a hub id or a folder.
        revision: Hub revision.
        processor: Options of the model's processor in place of its own, e.g. ``max_pixels``.
        data: Calibration source; None for the one shipped for the model.
        held_out: Held-out source; None for the one shipped, or a split of ``data`` by image.
        samples: Calibration samples used at most; None for all.
        held_out_samples: Held-out samples used at most, drawn by picture; None for all.
        match: How answers are compared: as ``vqa`` does, ``exact`` token by token, or ``contains``.
        template_args: Options of the model's chat template.
        allow_remote: Fetch pictures that rows name by ``http:`` URLs.
        keep: Budget: mean retention over all decoder layers. A study has one of three budgets.
        flops: Budget: share of the unpruned prefill's FLOPs, language model.
        kv_mib: Budget: MiB of the visual tokens' keys and values of an average calibration sample.
        up_to: Upper end of the budgets that ``objective = "pareto"`` searches, in the same unit.
        objective: ``metric`` minimises it on the budget, ``pareto`` the metric and the cost.
        promise: What may be lost: the cheapest config of the front that keeps it is exported.
        trials: Finished trials (complete or pruned) the study ends with, earlier runs included.
        timeout: Seconds that a run may take in all, from loading to the table.
        patience: Finished trials without a better one that end the study; 0: that does not.
        seed: Of the sampler and of the order of the samples.
        sampler: One of Optuna's: ``tpe`` models all together, ``tpe-uni`` each by itself.
        startup: Points before the sampler models anything.
        start: Where they come from: ``random``, or ``qmc``, a Sobol sequence that fills the space.
        refine: Share of later points that change a few values of the best ones.
        trial_pruner: Optuna's early stopping, sample by sample; it has none for two objectives.
        metric: What is minimised: ``cosine`` (the gap), ``kl`` of the next token, their sum, or
            ``kl-answer``: mean KL along the unpruned model's own answer.
        space: What is searched over.
        presets: Enqueued first, moved onto the budget; baselines are all presets, in any case.
        rescored: Best trials scored on all samples before one is chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="tiny", min_length=1)
    revision: str | None = None
    processor: dict[str, JsonValue] = Field(default_factory=dict)
    data: str | None = None
    held_out: str | None = None
    samples: int | None = Field(default=None, ge=1)
    held_out_samples: int | None = Field(default=None, ge=1)
    match: Match = "vqa"
    template_args: dict[str, bool | int | float | str] | None = None
    allow_remote: bool = False
    keep: float | None = None
    flops: float | None = None
    kv_mib: float | None = None
    up_to: float | None = None
    objective: Literal["metric", "pareto"] = "metric"
    promise: Promise | None = None
    trials: int = Field(default=100, ge=1)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    patience: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    sampler: Literal["tpe", "tpe-uni", "gp", "cmaes", "nsga2", "qmc", "random"] = "tpe"
    startup: int = Field(default=10, ge=1)
    start: Literal["random", "qmc"] = "random"
    refine: float = Field(default=0.5, ge=0, le=1)
    trial_pruner: Literal["wilcoxon", "none"] = "wilcoxon"
    metric: Metric = "cosine"
    space: SpaceSpec = Field(default_factory=SpaceSpec)
    presets: tuple[str, ...] = ("topv", "fastervlm", "fastv", "uniform")
    rescored: int = Field(default=5, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data, promises = dict(data), data.get("promise") is not None
        if promises:
            data.setdefault("objective", "pareto")
        pareto, (least, most) = data.get("objective") == "pareto", _PROMISED if promises else _KEEPS
        if all(data.get(kind) is None for kind in KINDS):
            data["keep"] = least if pareto else _KEEP
            if pareto and data.get("up_to") is None:
                data["up_to"] = most
        if pareto:
            data.setdefault("trial_pruner", "none")
        return data

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        # Specs of older releases come back as the same bytes.
        for name in _SINCE:
            unsaid = type(self).model_fields[name].get_default(call_default_factory=True)
            if data.get(name) == unsaid:
                data.pop(name, None)
        return data

    @model_validator(mode="after")
    def _check(self) -> "StudySpec":
        from prunetune.presets import read_preset

        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"received {' and '.join(given)}; a study has one budget, give one")
        for value in (self._bound, self.up_to):
            if value is not None:
                self._check_bound(value)
        self._check_objective()
        check_options(self.processor)
        for name in self.presets:
            read_preset(name)
        return self

    def _check_bound(self, value: float) -> None:
        if self.kind == "keep":
            check_keep(value, self.space.floor)
        elif not (value > 0 and math.isfinite(value)) or (self.kind == "flops" and value >= 1):
            share = " and below 1" if self.kind == "flops" else ""
            hint = f"; for {value:g}% write {value / 100:.6g}" if share and 1 < value <= 100 else ""
            raise ValueError(f"{self.kind}: received {value:g}, allowed above 0{share}{hint}")

    def _check_objective(self) -> None:
        if self.objective == "metric":
            if self.promise is not None:
                raise ValueError("promise: it needs objective pareto, which finds the cheapest")
            if self.up_to is not None:
                raise ValueError(
                    f"{self.kind}: received the range {self._bound:g}:{self.up_to:g}; "
                    "only objective pareto searches a range, give one value"
                )
            return
        if self.up_to is None or not self.up_to > self._bound:
            shown = "" if self.up_to is None else f":{self.up_to:g}"
            who = "a promise (--max-drop)" if self.promise else "objective pareto"
            raise ValueError(
                f"{self.kind}: received {self._bound:g}{shown}; {who} needs a range, e.g. 0.05:0.5"
            )
        if self.trial_pruner != "none":
            raise ValueError(
                f"trial_pruner: received {self.trial_pruner!r}, allowed 'none': Optuna stops no "
                "trial early where there are two objectives"
            )
        if self.sampler == "cmaes":
            raise ValueError(
                "sampler: received 'cmaes', which searches one objective only; for pareto "
                "allowed: tpe, tpe-uni, gp, nsga2, qmc or random"
            )

    @property
    def own_tokens(self) -> int:
        """Most tokens of the unpruned model's own answers that are followed; 0: none are."""
        return OWN_TOKENS if self.metric == "kl-answer" else 0

    @property
    def kind(self) -> Kind:
        """Which kind of budget the study has."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def _bound(self) -> float:
        return float(getattr(self, self.kind))

    @property
    def bounds(self) -> list[float]:
        """The budget's bounds that are shares of the unpruned cost."""
        given = [value for value in (self._bound, self.up_to) if value is not None]
        return [value for value in given if value < 1.0 and self.kind != "kv_mib"]

    @property
    def pareto(self) -> bool:
        """Whether the cost is an objective beside the metric."""
        return self.objective == "pareto"

    @property
    def budget(self) -> dict[str, float | list[float]]:
        """The budget as data: kind to value, or to both bounds of a range."""
        low = self._bound
        return {self.kind: low if self.up_to is None else [low, self.up_to]}

    @property
    def budget_shown(self) -> str:
        """The budget in words."""
        values = [v for v in (self._bound, self.up_to) if v is not None]
        if self.kind == "kv_mib":
            return f"{' to '.join(f'{v:g}' for v in values)} MiB of visual KV cache a sample"
        shares = " to ".join(f"{100 * v:.4g}%" for v in values)
        if self.kind == "flops":
            return f"{shares} of the unpruned prefill's FLOPs"
        return f"mean retention {shares} over all decoder layers"

    def budgets(self, facts: ModelFacts) -> tuple[Budget, Budget]:
        """Return the least and the largest budget of a model; one and the same, but for pareto."""
        low = make_budget(self.kind, self._bound, facts)
        return low, low if self.up_to is None else make_budget(self.kind, self.up_to, facts)

    @property
    def label(self) -> str:
        """The budget in names of folders and studies: ``keep0.25``, ``flops0.3``, ``kv12mib``."""
        text = f"{self._bound:g}" + ("" if self.up_to is None else f"-{self.up_to:g}")
        return f"kv{text}mib" if self.kind == "kv_mib" else f"{self.kind}{text}"

    @property
    def study_name(self) -> str:
        """Name of the study unless one is given; where a model's folder lies is not part of it."""
        model = Path(self.model).name or "model" if self.model[0] in "/.~" else self.model
        return f"{model}/{self.label}/{self.metric}"

    @classmethod
    def parse(cls, data: Any, origin: str = "study spec") -> "StudySpec":
        """Validate plain data.

        Raises:
            ConfigError: One line that names the field, the value received and what is allowed.
        """
        if isinstance(data, Mapping):
            check_kinds(data, cls, origin)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {describe(error)}") from None

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "StudySpec":
        """Read a TOML file; ``overrides`` (flags) replace its values, ``space`` key by key.

        A budget among them replaces the file's, whatever its kind.

        Raises:
            ConfigError: The file is missing, is not TOML, or is not a valid spec.
        """
        try:
            data = parse_toml(read_plain(Path(path), _MOST_BYTES).decode("utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"cannot read study spec {str(path)!r}: {reason}; name one") from None
        except ValueError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
        changes = dict(overrides or {})
        if isinstance(data.get("space"), dict) and isinstance(changes.get("space"), Mapping):
            changes["space"] = {**data["space"], **changes["space"]}
        if any(kind in changes for kind in KINDS):
            data = {k: v for k, v in data.items() if k not in (*KINDS, "up_to")}
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
