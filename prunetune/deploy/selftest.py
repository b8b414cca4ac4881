"""Whether a pruned model answers as it has to, on the releases and the machine at hand.

Three comparisons that need no expected numbers: decoding with a cache against one forward without,
a batch of unlike prompts against each of them alone, and the pruned model against the unpruned one
in which dropped tokens are hidden. How far the *unpruned* model differs from itself in the first
two is the yardstick: so much is rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunetune.calibration import CalibrationSet, Sample, encode
from prunetune.config import PruningConfig
from prunetune.deploy.masked import why_not
from prunetune.deploy.runs import Run, Runner, worst
from prunetune.models.devices import device_of
from prunetune.pixels.processors import resized
from prunetune.runtime.apply import family_of

MOST = 32
"""Samples at most: they go through the model in one batch."""
EXACT, SCORES_EXACT, SCORES_HALF = 1e-3, 1e-2, 0.25
"""Tolerances of logits in single precision, and of scores in single and in half precision."""
HALF = 1e-5
"""Number formats with a larger epsilon are half precision."""
NOISE = 4.0
"""Tolerance in units of what the unpruned model differs from itself."""
TOO_NOISY = 1 / 16
"""Where the unpruned model differs from itself by more, nothing can be said."""


@dataclass(frozen=True)
class Figure:
    """One comparison, the worst of all samples.

    Attributes:
        difference: Largest difference, as a share of the largest magnitude of what is compared
            (logits less their mean; scores); None where not compared.
        unpruned: The same of the unpruned model; None where it has no such figure.
        tolerance: Up to here they are the same but for rounding.
        passed: Whether they are, or were not compared.
        reason: Why not compared; empty where they were.
    """

    difference: float | None
    unpruned: float | None
    tolerance: float
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class SelfTest:
    """What a self-test found.

    Attributes:
        samples: Prompts that were run.
        cache: Decoding with the cache against one forward without.
        batch: All prompts in one batch against each alone.
        masked: Pruned against unpruned with dropped tokens hidden.
        kept: The scores of runs of one prompt that keep other tokens: these may differ by rounding
            where scores do. Logits are then compared under the same kept tokens.
        parted: Runs that kept other tokens than the prompt alone did.
        passed: Whether all of them are the same but for rounding.
    """

    samples: int
    cache: Figure
    batch: Figure
    masked: Figure
    kept: Figure
    parted: int
    passed: bool


def self_test(
    config: PruningConfig,
    loaded: Any,
    split: CalibrationSet,
    *,
    samples: int = 4,
    progress: Callable[[int], None] | None = None,
) -> SelfTest:
    """Compare a pruned model with itself and with the unpruned model.

    Args:
        config: The config.
        loaded: ``prunetune.models.LoadedModel``.
        split: Where the first ``samples`` samples are taken from.
        samples: How many, 1 to ``MOST``.
        progress: Called with the number of prompts done so far.

    Raises:
        UnsupportedModelError: The model runs unpruned, but not pruned.
    """
    # Of smaller pictures where the config makes them smaller: hidden tokens are of the same ones.
    processor = resized(loaded.processor, config)
    chosen = _unlike(processor, split.samples[: min(samples, MOST)])
    return compared(
        config,
        loaded.model,
        [encode(processor, [sample]) for sample in chosen],
        encode(processor, chosen),
        special=getattr(loaded.processor.tokenizer, "all_special_ids", ()),
        progress=progress,
    )


@torch.no_grad()
def compared(
    config: PruningConfig,
    model: Any,
    prompts: Sequence[Mapping[str, Any]],
    batch: Mapping[str, Any],
    *,
    special: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> SelfTest:
    """Compare as ``self_test`` does, on model inputs.

    Args:
        config: The config.
        model: The Hugging Face model.
        prompts: Inputs of each prompt alone, without padding.
        batch: Inputs of all of them, padded on the left.
        special: Ids that are not to be fed as answers.
        progress: Called with the number of prompts done so far.

    Raises:
        UnsupportedModelError: The model runs unpruned, but not pruned.
    """
    tester = _Tester(config, model, special)
    for done, inputs in enumerate(prompts, start=1):
        tester.alone(inputs)
        if progress is not None:
            progress(done)
    tester.together(batch)
    return tester.found()


def _unlike(processor: Any, samples: Sequence[Sample]) -> list[Sample]:
    """Return at least two prompts, not all of one length."""
    chosen = list(samples)
    if len({encode(processor, [sample])["input_ids"].shape[1] for sample in chosen}) == 1:
        chosen[max(1, len(chosen) - 1) :] = [_longer(chosen[-1])]
    return chosen


def _longer(sample: Sample) -> Sample:
    """Return a sample that asks twice what it asks."""
    twice = replace(sample, question=f"{sample.question} {sample.question}")
    if not sample.turns:
        return twice
    *before, last = sample.turns
    return replace(twice, turns=(*before, replace(last, parts=(*last.parts, last.text or "?"))))


class _Tester:
    """Collects differences; each list has one entry a comparison."""

    def __init__(self, config: PruningConfig, model: Any, special: Sequence[int]) -> None:
        family = family_of(model)
        self.runner = Runner(family, config, special)
        self.reason = why_not(family)
        self.device = device_of(family.model)
        self.eps = torch.finfo(next(model.parameters()).dtype).eps
        self.inputs: list[Any] = []
        self.plain: list[Run] = []
        self.pruned: list[Run] = []
        self.apart: dict[str, list[float]] = {
            name: [] for name in ("cache", "batch", "masked", "kept", "own cache", "own batch")
        }
        self.unknown: set[str] = set()

    def alone(self, inputs: Mapping[str, Any]) -> None:
        """Run one prompt in all ways."""
        inputs, runner = self._here(inputs), self.runner
        plain = runner.generated(inputs, pruned=False)
        tokens = plain.tokens
        at = len(self.plain)
        self.inputs.append(inputs)
        self.plain.append(plain)
        own = runner.whole(inputs, tokens, pruned=False)
        self._note("own cache", plain, own, at)
        self._note("own cache", runner.stepped(inputs, tokens, pruned=False), own, at)
        whole = runner.whole(inputs, tokens, pruned=True)
        if not self.reason:
            self._note("masked", whole, runner.masked(inputs, tokens, whole.kept[0]), at)
        self._compare("cache", runner.stepped(inputs, tokens, pruned=True), whole, at)
        self.pruned.append(runner.generated(inputs, tokens, pruned=True))
        self._compare("cache", self.pruned[at], whole, at)

    def together(self, inputs: Mapping[str, Any]) -> None:
        """Run all prompts in one batch."""
        inputs = self._here(inputs)
        tokens = torch.cat([run.tokens for run in self.plain])
        plain = self.runner.generated(inputs, tokens, pruned=False)
        batch = self.runner.generated(inputs, tokens, pruned=True)
        for at, alone in enumerate(self.plain):
            self._note("own batch", plain.row(at), alone, at)
            self._compare("batch", batch.row(at), self.pruned[at], at)

    def _here(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }

    def _compare(self, name: str, one: Run, two: Run, at: int) -> None:
        """Compare two pruned runs of prompt ``at``; if they keep other tokens, under ``one``'s."""
        parted = one.kept[0].parts_from(two.kept[0])
        if parted is not None:
            self.apart["kept"].append(parted)
            if self.reason:
                self.unknown.add(name)
                return
            two = self.runner.masked(self.inputs[at], two.tokens, one.kept[0])
        self._note(name, one, two, at)

    def _note(self, name: str, one: Run, two: Run, at: int) -> None:
        logits = self.plain[at].logits
        centred = logits - logits.mean(-1, keepdim=True)
        self.apart[name].append(worst(one.logits, two.logits) / float(centred.abs().amax()))

    def found(self) -> SelfTest:
        """Return the figures."""
        own = {name: _most(self.apart[f"own {name}"]) for name in ("cache", "batch")}
        cache, batch = (
            self._figure(
                name,
                own[name],
                "runs keep other tokens, and " + self.reason if name in self.unknown else "",
            )
            for name in ("cache", "batch")
        )
        masked = self._figure("masked", max(own.values()), self.reason)
        kept = self._kept()
        return SelfTest(
            samples=len(self.plain),
            cache=cache,
            batch=batch,
            masked=masked,
            kept=kept,
            parted=len(self.apart["kept"]),
            passed=all(figure.passed for figure in (cache, batch, masked, kept)),
        )

    def _figure(self, name: str, own: float, reason: str) -> Figure:
        floor = EXACT if self.eps < HALF else 2 * self.eps
        tolerance, found = max(floor, NOISE * own), self.apart[name]
        difference = _most(found) if found else None
        if not own <= TOO_NOISY:
            reason = f"the unpruned model itself differs by {own:.1e} of its logits' magnitude"
            return Figure(difference, own, tolerance, True, reason)
        return Figure(
            difference, own, tolerance, difference is None or difference <= tolerance, reason
        )

    def _kept(self) -> Figure:
        tolerance = SCORES_EXACT if self.eps < HALF else SCORES_HALF
        difference = _most([0.0, *self.apart["kept"]])
        return Figure(difference, None, tolerance, difference <= tolerance)


def _most(values: list[float]) -> float:
    """Return the largest; not a number where one is none."""
    return float(torch.tensor(values, dtype=torch.float64, device="cpu").amax())
