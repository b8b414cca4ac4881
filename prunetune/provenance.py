"""Which model a config is for, and where it comes from."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
)

from prunetune.messages import allowed

Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Depth = Annotated[Whole, Field(ge=1, le=4096), allowed("a whole number from 1 to 4096")]


class Frozen(BaseModel):
    """A part of a config: it never changes, and has no other fields than these."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRef(Frozen):
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


class Provenance(Frozen):
    """Where a config comes from; every field is optional, none changes what the config does.

    Attributes:
        study: Name of the study.
        trial: Number of the trial.
        gap: Mean gap on the calibration split.
        gap_ci: Bootstrap 95% interval of ``gap``.
        held_out_gap: Mean gap on the held-out split.
        mean_retention: Mean retention over all decoder layers.
        flops_ratio: Prefill FLOPs of the language model, pruned over unpruned.
        flops: FLOPs of a mean calibration prompt before its first token: ``tower`` (with the
            projector), ``language_model``, their ``sum``, and ``unpruned_`` the same.
        kv_ratio: Visual KV-cache share, pruned over unpruned.
        budget: What it was searched for: ``keep``, ``flops`` or ``kv_mib``, and its value.
        processor: Options of the processor that it was searched with, in place of the model's own.
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
    flops: dict[str, Number] | None = None
    kv_ratio: Number | None = None
    budget: dict[str, Number] | None = None
    processor: dict[str, JsonValue] | None = None
    calibration_digest: str | None = None
    weights_digest: str | None = None
    seed: Whole | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str | None = None

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for later in ("flops", "budget", "processor", "weights_digest"):
            if data.get(later) is None:
                # Files of older releases come back as the same bytes.
                data.pop(later, None)
        return data
