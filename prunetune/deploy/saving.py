"""What a config saves on this device, at the shapes of the user's own data."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunetune.calibration import Sample, answer_ids, encode
from prunetune.config import PruningConfig
from prunetune.deploy.memory import MIB
from prunetune.deploy.request import placed
from prunetune.deploy.timing import Run, Stopwatch, interleave, spread
from prunetune.errors import ConfigError
from prunetune.models.devices import device_of, device_shown
from prunetune.pixels.processors import at_level
from prunetune.provenance import Pair, Saving
from prunetune.runtime.apply import family_of

REQUESTS, ROUNDS, NEW_TOKENS = 3, 5, 32
"""Different requests that are timed; how often each is; tokens of an answer where none is known."""
_HOURS = {"h": 1.0, "hour": 1.0, "min": 60.0, "s": 3600.0, "d": 1 / 24, "day": 1 / 24}


def price_of(text: str) -> float:
    """Return the price of an hour of ``2.5/h``, ``0.04/min`` or ``60/day``; ``2.5`` is an hour's.

    Raises:
        ConfigError: It is none.
    """
    number, _, unit = text.strip().partition("/")
    try:
        price = float(number) * _HOURS[unit.strip() or "h"]
    except (ValueError, KeyError):
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise ConfigError(
            f"--price: received {text!r}, allowed what a device costs, e.g. 2.5/h, 0.04/min, 60/day"
        )
    return price


def measure_saving(
    loaded: Any,
    config: PruningConfig,
    samples: Sequence[Sample],
    *,
    price: float | None = None,
    requests: int = REQUESTS,
    rounds: int = ROUNDS,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Saving:
    """Time a config against the unpruned model on requests of a data set, one at a time.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        config: What prunes.
        samples: Of the data; requests of different length are taken, the longest among them.
        price: Of an hour of this device.
        requests: How many are taken at most.
        rounds: How often each is run.
        advance: Called with the runs that are done, and how many there will be.

    Raises:
        ConfigError: The config is for another model.
    """
    family, device = family_of(loaded.model), device_of(loaded.model)
    watch = Stopwatch(family)
    small, pruning = _parted(loaded, config, family.config.model_type)
    chosen, lengths = spread_requests(loaded, samples, requests)
    new_tokens = answer_length(loaded.processor, samples)
    total, done = 2 * (rounds + 1) * len(chosen), 0

    def one() -> None:
        nonlocal done
        done += 1
        advance(done, total)

    before: list[list[Run]] = []
    after: list[list[Run]] = []
    for sample in chosen:
        runs = interleave(
            {
                "unpruned": watch.case(None, request_of(loaded, sample), new_tokens),
                "pruned": watch.case(pruning, request_of(small, sample), new_tokens),
            },
            rounds,
            one,
        )
        before.append(runs["unpruned"])
        after.append(runs["pruned"])
    # Round by round over all requests: a slow minute hits both alike.
    ratios = [
        sum(run.total for run in full) / sum(run.total for run in fewer)
        for full, fewer in zip(zip(*before), zip(*after))
    ]
    faster = spread(ratios)
    totals = _pair(before, after, lambda run: 1e3 * run.total)
    peaks = [run.peak for runs in (*before, *after) for run in runs]
    image = statistics.fmean(image for image, _ in lengths)
    return Saving(
        device=device_shown(device),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        requests=len(chosen),
        rounds=rounds,
        image_tokens=image,
        text_tokens=statistics.fmean(whole - image for image, whole in lengths),
        new_tokens=new_tokens,
        prefill_ms=_pair(before, after, lambda run: 1e3 * run.prefill),
        first_ms=_pair(before, after, lambda run: 1e3 * run.first),
        total_ms=totals,
        kv_mib=_pair(before, after, lambda run: run.kv_bytes / MIB),
        peak_mib=None if None in peaks else _pair(before, after, _peak_mib),
        faster=faster.median,
        faster_interval=(faster.low, faster.high),
        price_per_hour=price,
        million_requests=None if price is None else _money(totals, price),
    )


def first_token_ms(
    loaded: Any,
    configs: Sequence[PruningConfig],
    samples: Sequence[Sample],
    *,
    rounds: int = ROUNDS,
) -> list[float]:
    """Return each config's milliseconds to the first token, image encoder included.

    They are medians of interleaved rounds, a mean over requests of different length.
    """
    family = family_of(loaded.model)
    watch, kind = Stopwatch(family), family.config.model_type
    chosen, _ = spread_requests(loaded, samples, REQUESTS)
    spent = [0.0] * len(configs)
    for sample in chosen:
        cases = {}
        for number, config in enumerate(configs):
            small, pruning = _parted(loaded, config, kind)
            cases[str(number)] = watch.case(pruning, request_of(small, sample), 1)
        for name, runs in interleave(cases, rounds).items():
            spent[int(name)] += 1e3 * statistics.median(run.first for run in runs) / len(chosen)
    return spent


def _parted(loaded: Any, config: PruningConfig, kind: str) -> tuple[Any, PruningConfig | None]:
    """Return the model with the processor of a config's pictures, and what prunes then."""
    small = replace(loaded, processor=at_level(loaded.processor, config.pixels, kind))
    return small, config.model_copy(update={"pixels": None}) if config.stages else None


def spread_requests(
    loaded: Any, samples: Sequence[Sample], count: int
) -> tuple[list[Sample], list[tuple[int, int]]]:
    """Return requests of different length, with their image tokens and all tokens.

    One a picture is looked at, and at most 64 of them: processing pictures takes time.
    """
    first = list({sample.image_id or str(i): sample for i, sample in enumerate(samples)}.values())
    step = max(1, len(first) // 64)
    marks = list(family_of(loaded.model).placeholders.values())
    known: list[tuple[int, int, int, Sample]] = []
    for sample in first[::step]:
        ids = encode(loaded.processor, [sample])["input_ids"]
        image = int(torch.isin(ids, ids.new_tensor(marks)).sum())
        known.append((int(ids.numel()), image, len(known), sample))
    known.sort(key=lambda item: item[:3])
    count = min(count, len(known))
    # From the shortest to the longest, evenly: their mean is near the data's.
    places = [round((k + 0.5) * len(known) / count - 0.5) for k in range(count)]
    chosen = [known[place] for place in places]
    return [item[3] for item in chosen], [(item[1], item[0]) for item in chosen]


def answer_length(processor: Any, samples: Sequence[Sample]) -> int:
    """Return the median tokens of the expected answers; ``NEW_TOKENS`` where there are none."""
    found = [answer_ids(processor, sample) for sample in samples if sample.answer is not None]
    lengths = [expected.new_tokens for expected in found if expected is not None]
    return max(1, round(statistics.median(lengths))) if lengths else NEW_TOKENS


def request_of(loaded: Any, sample: Sample) -> dict[str, Tensor]:
    """Return a sample's inputs of ``generate``, on the model's device."""
    inputs = dict(encode(loaded.processor, [sample]))
    return placed(inputs, loaded.model.dtype, device_of(loaded.model))


def _pair(
    before: Sequence[Sequence[Run]], after: Sequence[Sequence[Run]], figure: Callable[[Run], float]
) -> Pair:
    """Return the mean over requests of the rounds' medians, unpruned and pruned."""
    full, fewer = (
        statistics.fmean(statistics.median(map(figure, runs)) for runs in side)
        for side in (before, after)
    )
    return Pair(unpruned=full, pruned=fewer)


def _peak_mib(run: Run) -> float:
    return (run.peak or 0) / MIB


def _money(totals: Pair, price: float) -> Pair:
    """Return what a million requests cost, one after another."""
    hours = 1e6 / 1e3 / 3600
    return Pair(unpruned=totals.unpruned * hours * price, pruned=totals.pruned * hours * price)
