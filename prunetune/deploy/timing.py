"""Times one request through ``generate``, and many of them in interleaved rounds."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.config import PruningConfig
from prunetune.deploy.memory import Peak
from prunetune.families import Family
from prunetune.models.devices import device_of
from prunetune.release import cache_of, keyed_layers
from prunetune.runtime.apply import apply


@dataclass(frozen=True)
class Run:
    """One request: a ``generate`` from pixels to the last new token.

    Attributes:
        encode: Seconds in the image encoder; scores that read the tower are computed there.
        prefill: Seconds of the first forward without the encoder: the language model, with
            scoring and dropping.
        decode: Seconds of one further token, mean; nan where one token was generated.
        total: Seconds of the whole request.
        lengths: Slots of every decoder layer's cache after the prefill.
        kv_bytes: Bytes of keys and values after the prefill.
        peak: Bytes of peak memory; None where it cannot be told.
    """

    encode: float
    prefill: float
    decode: float
    total: float
    lengths: tuple[int, ...]
    kv_bytes: int
    peak: int | None

    @property
    def first(self) -> float:
        """Seconds to the first token: encoder and prefill."""
        return self.encode + self.prefill


class Stopwatch:
    """Runs requests on one model and takes their times.

    Args:
        family: View of the model; an applied config is timed along.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.device = device_of(family.model)
        self.peak = Peak(self.device)

    def now(self) -> float:
        """Return the time once the device has done what it was told."""
        if self.device.type == "cuda":
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
        return time.perf_counter()

    def case(
        self, config: PruningConfig | None, inputs: Mapping[str, Tensor], new_tokens: int
    ) -> Callable[[], Run]:
        """Return what runs a request under a config, which goes on and off with every run.

        Args:
            config: None for the model as it is.
            inputs: Of ``generate``.
            new_tokens: To generate.
        """

        def run() -> Run:
            with apply(self.family.model, config) if config is not None else nullcontext():
                return self.run(inputs, new_tokens)

        return run

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], new_tokens: int) -> Run:
        """Generate ``new_tokens`` tokens greedily and return what it took."""
        model: Any = self.family.model
        base = self.family.base.__dict__
        method = self.family.encoder_method
        before = base.get(method)
        encode = getattr(self.family.base, method)
        spent, span = [0.0], [0.0, 0.0, 0.0]
        cache: list[list[tuple[int, int]]] = []

        # The signature stays: generate looks at it.
        @functools.wraps(encode)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return encode(*args, **kwargs)
            finally:
                spent[0] += self.now() - start

        def enter(module: Any, args: Any) -> None:
            if not cache:
                span[:2] = [self.now(), spent[0]]

        def leave(module: Any, args: Any, output: Any) -> None:
            if not cache:
                span[2] = self.now() - span[0] - (spent[0] - span[1])
                cache.append(layers_of(cache_of(output)))

        hooks = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
        base[method] = timed
        self.peak.reset()
        start = self.now()
        try:
            model.generate(
                **inputs,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
            )
            total = self.now() - start
        finally:
            base.pop(method)
            if before is not None:
                base[method] = before
            for hook in hooks:
                hook.remove()
        first = span[0] + span[2] + (spent[0] - span[1]) - start
        return Run(
            encode=spent[0],
            prefill=span[2],
            decode=(total - first) / (new_tokens - 1) if new_tokens > 1 else math.nan,
            total=total,
            lengths=tuple(length for length, _ in cache[0]),
            kv_bytes=sum(size for _, size in cache[0]),
            peak=self.peak.read(),
        )


def layers_of(cache: Any) -> list[tuple[int, int]]:
    """Return (slots, bytes of keys and values) of every layer of a cache that keeps them."""
    kept = [cache.layers[k] for k in keyed_layers(cache)]
    return [
        (int(layer.keys.shape[-2]), int(layer.keys.nbytes + layer.values.nbytes)) for layer in kept
    ]


def interleave(
    cases: Mapping[str, Callable[[], Run]],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Run]]:
    """Run every case once a round, in turn, so that a slow minute hits all of them alike.

    A first round warms up and does not count; each round begins with another case.

    Returns:
        One ``Run`` a round and case.
    """
    runs: dict[str, list[Run]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(-1, rounds):
        first = max(0, number) % len(names)
        for name in [*names[first:], *names[:first]]:
            run = cases[name]()
            if number >= 0:
                runs[name].append(run)
            advance()
    return runs


@dataclass(frozen=True)
class Spread:
    """A median and what it is uncertain by.

    Attributes:
        median: Of the rounds.
        low: Lower end of the interval that holds the true median with at least 90%, from order
            statistics alone; with fewer than 5 rounds the smallest value, at less than 90%.
        high: Its upper end.
    """

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return median and interval of at least one value."""
    ordered = sorted(values)
    n, cut, tail = len(ordered), 0, 0.5 ** len(ordered)
    # The k-th smallest is below the true median unless fewer than k of n values are.
    while cut + 1 < n / 2:
        tail += math.comb(n, cut + 1) * 0.5**n
        if tail > 0.05:
            break
        cut += 1
    return Spread(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut])
