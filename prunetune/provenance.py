"""Which model a config is for, where it comes from, and what was measured of it."""

from typing import Annotated, Any, Literal

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


Interval = tuple[Number, Number]
Outcome = Literal["better", "tie", "worse", "unknown"]
Problem = Literal[
    "too_few_pictures", "unpruned_answers_nothing", "answers_nothing", "no_baseline"
]  # fmt: skip


class Loss(Frozen):
    """What is lost against the unpruned model on held-out data, paired sample by sample.

    Attributes:
        mean: Share of the samples, or the gap; below 0 something is gained.
        interval: Two-sided 95% interval of ``mean``, over pictures.
        of: What the unpruned model has of it; None where that says nothing (a gap).
        beyond_noise: Whether the interval leaves out 0.
    """

    mean: Number
    interval: Interval
    of: Number | None = None
    beyond_noise: bool


class Unpruned(Frozen):
    """A config against the unpruned model on held-out data.

    Attributes:
        accuracy: Share of right answers that is lost; None where there are no answers.
        gap: The mean gap.
        agreement: Share of samples with another most likely next token.
    """

    accuracy: Loss | None = None
    gap: Loss
    agreement: Loss


class Rival(Frozen):
    """A config against a baseline of the same cost on held-out data, paired sample by sample.

    Attributes:
        name: Of the baseline.
        measure: What the two are compared by: ``accuracy`` where there are answers.
        ahead: By how much the config is better: a share of the samples, or a lower gap.
        interval: Two-sided 95% interval of ``ahead``, over pictures.
        outcome: Of the comparison; ``tie``: the interval holds 0.
        gap: The baseline's.
        accuracy: The baseline's.
    """

    name: str
    measure: Literal["accuracy", "gap"]
    ahead: Number
    interval: Interval
    outcome: Outcome
    gap: Number
    accuracy: Number | None = None


class Judged(Frozen):
    """What a config is worth on held-out data: against unpruned, then against the baselines.

    Attributes:
        outcome: Against all baselines: ``better`` than each, ``worse`` than one, else a ``tie``.
        tick: Whether it may be called a success: nothing of it is within noise.
        problem: Why nothing follows from the figures; None where something does.
        pictures: How many held-out pictures there were.
        unpruned: Against the unpruned model.
        kv_ratio: Visual KV-cache share.
        flops_ratio: Prefill FLOPs of the language model, pruned over unpruned.
        best_baseline: The strongest one; None where none could be measured.
        baselines: Names of the baselines by what the config is against them.
        itself: Presets that say the same as the config.
        promise_kept: Whether it keeps what its search promised; None where nothing was.
    """

    outcome: Outcome
    tick: bool
    problem: Problem | None = None
    pictures: Whole
    unpruned: Unpruned
    kv_ratio: Number
    flops_ratio: Number
    best_baseline: Rival | None = None
    baselines: dict[Outcome, tuple[str, ...]] = Field(default_factory=dict)
    itself: tuple[str, ...] = ()
    promise_kept: bool | None = None


class Pair(Frozen):
    """A figure without pruning and with it."""

    unpruned: Number
    pruned: Number


class Saving(Frozen):
    """What a config saves, measured on a device, one request at a time.

    Attributes:
        device: What it was measured on.
        dtype: Number format of the weights.
        requests: Different requests of the data that were timed.
        rounds: How often each was.
        image_tokens: Of a mean request.
        text_tokens: Of a mean request.
        new_tokens: Generated a request.
        prefill_ms: Of the language model, scoring included.
        first_ms: To the first token: image encoder and prefill.
        total_ms: Of a request, end to end.
        kv_mib: Keys and values after the prefill.
        peak_mib: Peak memory; None where it cannot be told.
        faster: Unpruned over pruned time of a request; median of the rounds.
        faster_interval: Its interval: below 1 at both ends it is slower, above 1 faster.
        price_per_hour: Of the device, where it was said.
        million_requests: What a million requests cost at that price.
    """

    device: str
    dtype: str
    requests: Whole
    rounds: Whole
    image_tokens: Number
    text_tokens: Number
    new_tokens: Whole
    prefill_ms: Pair
    first_ms: Pair
    total_ms: Pair
    kv_mib: Pair
    peak_mib: Pair | None = None
    faster: Number
    faster_interval: Interval
    price_per_hour: Number | None = None
    million_requests: Pair | None = None

    @property
    def told(self) -> Literal["faster", "slower", "within noise"]:
        """What the rounds tell: a side only where the whole interval and the medians are on it."""
        (low, high), gained = self.faster_interval, self.total_ms.unpruned - self.total_ms.pruned
        if low > 1 and gained > 0:
            return "faster"
        return "slower" if high < 1 and gained < 0 else "within noise"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, with what the rounds tell, as ``--json`` shows them."""
        return {**self.model_dump(mode="json"), "told": self.told}


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
        judged: What it is worth on held-out data.
        saving: What it saves on a device.
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
    judged: Judged | None = None
    saving: Saving | None = None
    calibration_digest: str | None = None
    weights_digest: str | None = None
    seed: Whole | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str | None = None

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for later in ("flops", "budget", "processor", "judged", "saving", "weights_digest"):
            if data.get(later) is None:
                # Files of older releases come back as the same bytes.
                data.pop(later, None)
        return data
