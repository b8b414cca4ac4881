"""Measures what pruning pays at a shape: unpruned, pruned, and rivals at the same token count."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prunetune.budget import (
    ModelFacts,
    facts_of,
    mean_retention,
    prefill_flops,
    rebudget,
    retention_by_layer,
)
from prunetune.config import PruningConfig
from prunetune.deploy.request import Request
from prunetune.deploy.timing import Run, Spread, Stopwatch, interleave, spread
from prunetune.deploy.verdict import Verdict, judge, median_of, ratio
from prunetune.errors import ConfigError
from prunetune.families import Family
from prunetune.presets import load_preset
from prunetune.runtime.apply import apply
from prunetune.tokens import keep_count

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Case:
    """What is measured beside the unpruned model.

    Attributes:
        config: None: nothing is pruned.
        request: What is asked: the same with smaller pictures, or the very same.
    """

    config: PruningConfig | None
    request: Request


@dataclass(frozen=True)
class CaseResult:
    """What was measured of one case.

    Attributes:
        name: ``unpruned``, ``pruned``, ``uniform``, ``resized`` or ``both``.
        image_tokens: Of a prompt, as they enter the language model.
        mean_retention: Over all decoder layers, of the tokens of the full pictures.
        encode: Seconds in the image encoder.
        prefill: Seconds of the language model's prefill, scoring included.
        decode: Seconds a further token; None where one token was generated.
        first: Seconds to the first token: encoder and prefill.
        total: Seconds of a request, end to end.
        prefill_ratio: To the unpruned prefill, round by round.
        first_ratio: To the unpruned time to the first token, round by round.
        total_ratio: To the unpruned request, round by round.
        flops_ratio: What the FLOPs of the language model's prefill promise.
        tower_flops: Of the vision tower and projector, a prompt.
        language_flops: Of the language model's prefill, a prompt.
        first_flops_ratio: What both together promise.
        kv_bytes: Bytes of keys and values after the prefill.
        visual_slots: Image tokens in the cache, all layers and rows of the batch.
        promised_slots: The same by the config's retentions.
        kv_ratio: ``visual_slots`` over the unpruned ones: to the token the mean retention.
        peak: Bytes of peak memory, largest of the rounds; None where it cannot be told.
        verdict: Against unpruned; None for that itself.
    """

    name: str
    image_tokens: int
    mean_retention: float
    encode: Spread
    prefill: Spread
    decode: Spread | None
    first: Spread
    total: Spread
    prefill_ratio: Spread
    first_ratio: Spread
    total_ratio: Spread
    flops_ratio: float
    tower_flops: float
    language_flops: float
    first_flops_ratio: float
    kv_bytes: int
    visual_slots: int
    promised_slots: int
    kv_ratio: float
    peak: int | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Bench:
    """A whole measurement.

    Attributes:
        cases: Unpruned first.
        rounds: Of each.
        batch_size: Prompts a request.
        image_tokens: Of a prompt.
        text_tokens: Of a prompt.
        new_tokens: Generated.
    """

    cases: tuple[CaseResult, ...]
    rounds: int
    batch_size: int
    image_tokens: int
    text_tokens: int
    new_tokens: int


def bench(
    family: Family,
    config: PruningConfig,
    request: Request,
    *,
    new_tokens: int,
    rounds: int,
    uniform: bool = True,
    own: Request | None = None,
    more: Mapping[str, Case] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Bench:
    """Measure a config on a model.

    Args:
        family: View of the model.
        config: The config.
        request: What is asked.
        new_tokens: Tokens to generate, 1 or more.
        rounds: Interleaved rounds that count.
        uniform: Measure ``uniform`` at the same mean retention too.
        own: The request with pictures as small as the config makes them; None: it leaves them.
        more: Further cases by name.
        advance: Called after every run.

    Raises:
        ConfigError: The config is for another model.
    """
    cases = {UNPRUNED: Case(None, request), **own_cases(config, request, own)}
    for case in cases.values():
        if case.config is not None:
            apply(family.model, case.config).remove()
    if uniform:
        share = 1.0 if own is None else own.image_tokens / request.image_tokens
        cases["uniform"] = Case(uniform_like(config, share), request)
    cases |= {name: case for name, case in (more or {}).items() if name not in cases}
    watch = Stopwatch(family)
    asked = {
        name: watch.case(case.config, case.request.inputs, new_tokens)
        for name, case in cases.items()
    }
    runs = interleave(asked, rounds, advance)
    facts = {name: facts_for(family, case.request) for name, case in cases.items()}
    batch = len(request.inputs["input_ids"])
    return Bench(
        tuple(
            _result(name, case, runs, facts, request, new_tokens)
            for name, case in cases.items()
        ),
        rounds=rounds,
        batch_size=batch,
        image_tokens=request.image_tokens,
        text_tokens=request.text,
        new_tokens=new_tokens,
    )  # fmt: skip


def own_cases(config: PruningConfig, request: Request, own: Request | None) -> dict[str, Case]:
    """Return the cases of a config itself: first what it does, then what its pruning does alone.

    A config that makes pictures smaller and prunes is ``both``; beside it stands ``pruned``, its
    stages on full pictures, moved to as many tokens. One that only makes them smaller is
    ``resized``.
    """
    if own is None:
        return {"pruned": Case(config, request)}
    if not config.stages:
        return {"resized": Case(None, own)}
    # The request's pictures are small already.
    stages = config.model_copy(update={"pixels": None})
    share = own.image_tokens / request.image_tokens
    keep = share * mean_retention(config.stages, config.model.num_layers)
    alone, _ = rebudget(stages, keep, config.model.num_layers)
    return {"both": Case(stages, own), "pruned": Case(alone, request)}


def uniform_like(config: PruningConfig, share: float = 1.0) -> PruningConfig:
    """Return the preset ``uniform`` at a config's mean retention.

    Args:
        config: The config.
        share: Of the image tokens that are left where it makes pictures smaller.
    """
    ref = config.model
    keep = share * mean_retention(config.stages, ref.num_layers)
    made, _ = load_preset(
        "uniform", model_type=ref.model_type, num_layers=ref.num_layers, keep=keep
    )
    return made


def promised_lengths(config: PruningConfig | None, request: Request, layers: int) -> list[int]:
    """Return the image tokens that a config leaves in each layer for one row, by its rounding."""
    if config is None:
        return [request.image_tokens] * layers
    left = []
    for share in retention_by_layer(config.stages, layers):
        left.append(sum(keep_count(n, share, n) for n in request.images))
    return left


def facts_for(family: Family, request: Request) -> ModelFacts:
    """Return what costs are counted from, for one prompt of a request."""
    seen = family.seen(request.inputs).times(1 / len(request.inputs["input_ids"]))
    return facts_of(family, image_tokens=request.image_tokens, text_tokens=request.text, seen=seen)


def _result(
    name: str,
    case: Case,
    runs: Mapping[str, list[Run]],
    facts: Mapping[str, ModelFacts],
    full_request: Request,
    new_tokens: int,
) -> CaseResult:
    mine, full, config, request = runs[name], runs[UNPRUNED], case.config, case.request
    batch, layers = len(request.inputs["input_ids"]), facts[name].num_layers
    lengths = {run.lengths for run in mine}
    if len(lengths) > 1:
        raise ConfigError(
            f"{name}: the cache's lengths differ from round to round; a scorer is not deterministic"
        )
    slots = batch * sum(length - request.text for length in mine[0].lengths)
    peaks = [run.peak for run in mine if run.peak is not None]
    stages = () if config is None else config.stages
    now, before = prefill_flops(stages, facts[name]), prefill_flops((), facts[UNPRUNED])
    assert now is not None
    assert before is not None
    share = request.image_tokens / full_request.image_tokens
    return CaseResult(
        name=name,
        image_tokens=request.image_tokens,
        mean_retention=share * mean_retention(stages, layers),
        encode=spread([run.encode for run in mine]),
        prefill=spread([run.prefill for run in mine]),
        decode=spread([run.decode for run in mine]) if new_tokens > 1 else None,
        first=spread([run.first for run in mine]),
        total=spread([run.total for run in mine]),
        prefill_ratio=ratio(mine, full, "prefill"),
        first_ratio=ratio(mine, full, "first"),
        total_ratio=ratio(mine, full),
        flops_ratio=now.language / before.language,
        tower_flops=now.tower,
        language_flops=now.language,
        first_flops_ratio=now.total / before.total,
        kv_bytes=int(median_of(mine, "kv_bytes")),
        visual_slots=slots,
        promised_slots=batch * sum(promised_lengths(config, request, layers)),
        kv_ratio=slots / (batch * layers * full_request.image_tokens),
        peak=max(peaks, default=None),
        verdict=None if name == UNPRUNED else judge(full, mine, new_tokens),
    )
