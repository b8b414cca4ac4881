"""Runs of one or more prompts for the self-test: with and without cache, pruned or not."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from prunetune.calibration import end_ids
from prunetune.config import PruningConfig
from prunetune.deploy.masked import hidden
from prunetune.errors import PrunetuneError, UnsupportedModelError
from prunetune.families import Family
from prunetune.release import cache_argument, cache_of
from prunetune.restorers import Restorer
from prunetune.runtime.apply import Handle
from prunetune.runtime.trace import ForwardTrace

STEPS = 3
"""One-token steps over the cache."""


def worst(one: Tensor, two: Tensor) -> float:
    """Return the largest absolute difference; not a number where either holds one."""
    return float(torch.where(one == two, 0.0, one - two).abs().amax())


@dataclass(frozen=True)
class Kept:
    """What one prompt kept.

    Attributes:
        stages: By stage which of the prompt's image tokens stay, ``[k]`` int64 ascending.
        scores: By stage the importance of the patches alive before it, ``[n]`` float32.
        states: By layer the states of those that stay, ``[k, d]``, where a restorer rewrites them.
        images: Tokens of each of the prompt's images.
    """

    stages: list[Tensor]
    scores: list[Tensor]
    states: dict[int, Tensor]
    images: list[int]

    def parts_from(self, other: "Kept") -> float | None:
        """Return how far scores are apart where two runs of a prompt keep other tokens first.

        Returns:
            The largest difference, as a share of the largest score; None: they keep the same.
        """
        for one, two, ours, theirs in zip(
            self.stages, other.stages, self.scores, other.scores, strict=True
        ):
            if not torch.equal(one, two):
                # Up to here both kept the same, so that these are scores of the same patches.
                scale = ours.abs().amax().clamp_min(1e-3)
                return worst(ours, theirs) / float(scale)
        return None


@dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        logits: ``[B, STEPS + 1, vocabulary]`` float32, behind the prompt and each of its steps.
        tokens: ``[B, STEPS]`` int64, the tokens fed.
        kept: Of each prompt; empty where nothing was pruned.
    """

    logits: Tensor
    tokens: Tensor
    kept: list[Kept] = field(default_factory=list)

    def row(self, at: int) -> "Run":
        """Return what it gave for one prompt."""
        one = slice(at, at + 1)
        return Run(self.logits[one], self.tokens[one], self.kept[one])


class Runner:
    """Runs prompts on one model.

    Args:
        family: View of the model.
        config: The config.
        special: Ids that are not to be fed as answers.
    """

    def __init__(self, family: Family, config: PruningConfig, special: Sequence[int]) -> None:
        self.family, self.config = family, config
        self.model: Any = family.model
        self.suppressed = sorted({*special, *family.placeholders.values(), *end_ids(family.model)})

    def generated(
        self, inputs: Mapping[str, Any], tokens: Tensor | None = None, *, pruned: bool
    ) -> Run:
        """Run ``generate``: a prefill and one-token steps over its cache.

        Args:
            inputs: Of one prompt, or of several, left-padded.
            tokens: ``[B, STEPS]`` to be fed; None: the most likely ones.
            pruned: Whether under the config.
        """
        start = inputs["input_ids"].shape[1]
        forced: dict[str, Any] = {"suppress_tokens": self.suppressed}
        if tokens is not None:
            forced = {"logits_processor": LogitsProcessorList([_Forced(tokens, start)])}

        def run() -> Run:
            output = self.model.generate(
                **inputs,
                **forced,
                max_new_tokens=STEPS + 1,
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                output_logits=True,
            )
            logits = torch.stack([step.float() for step in output.logits], 1)
            return Run(logits, output.sequences[:, start : start + STEPS])

        return self._pruned(run, inputs) if pruned else run()

    def stepped(self, inputs: Mapping[str, Any], tokens: Tensor, *, pruned: bool) -> Run:
        """Run one prompt and one-token steps over its cache, as a loop of the caller's own does.

        Other than ``generate``, it leaves positions to the model, which asks the cache.
        """

        def run() -> Run:
            given = {}
            if not self.family.makes_cache:
                given = cache_argument(self.model, DynamicCache())
            output = self.model(**inputs, **given, use_cache=True, logits_to_keep=1)
            # Some make all logits, whatever they are asked for.
            logits = [output.logits[:, -1:]]
            for step in torch.split(tokens, 1, dim=1):
                given = cache_argument(self.model, cache_of(output))
                output = self.model(input_ids=step, use_cache=True, **given)
                logits.append(output.logits)
            return Run(torch.cat(logits, 1).float(), tokens)

        return self._pruned(run, inputs) if pruned else run()

    def whole(self, inputs: Mapping[str, Any], tokens: Tensor, *, pruned: bool) -> Run:
        """Run the prompts and ``tokens`` (``[B, STEPS]``) in one forward without a cache."""
        inputs = self._extended(inputs, tokens)

        def run() -> Run:
            # As many logits as a caller asks for who feeds an answer behind the prompt: the
            # runtime tells by it where the prompt ends.
            output = self.model(**inputs, use_cache=False, logits_to_keep=STEPS + 1)
            return Run(output.logits[:, -STEPS - 1 :].float(), tokens)

        return self._pruned(run, inputs) if pruned else run()

    def masked(self, inputs: Mapping[str, Any], tokens: Tensor, kept: Kept) -> Run:
        """Run one prompt unpruned in one forward, with what was not kept hidden."""
        ids = inputs["input_ids"][0]
        placeholders = torch.tensor(list(self.family.placeholders.values()), device=ids.device)
        slots = torch.isin(ids, placeholders).nonzero().flatten()
        depth, length = len(self.family.layers), len(ids) + STEPS
        alive = torch.ones(depth, length, dtype=torch.bool, device=ids.device)
        rewrites = {}
        for stage, stay in zip(self.config.stages, kept.stages, strict=True):
            left = slots[stay.to(slots.device)]
            alive[stage.layer :, slots] = False
            alive[stage.layer :, left] = True
            if stage.layer in kept.states:
                rewrites[stage.layer] = (left, kept.states[stage.layer])
        packed = self.config.positions == "packed"
        shares = {stage.layer: stage.mass for stage in self.config.stages}
        with hidden(
            self.family, alive, packed=packed, rewrites=rewrites,
            images=torch.split(slots, kept.images),
            shares=shares if any(shares.values()) else None,
        ):  # fmt: skip
            return self.whole(inputs, tokens, pruned=False)

    def _extended(self, inputs: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
        fills = {"attention_mask": 1, "token_type_ids": self.family.answer_kind}
        shape, longer = inputs["input_ids"].shape, dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.shape == shape:
                longer[name] = torch.nn.functional.pad(
                    value, (0, tokens.shape[1]), value=fills.get(name, 0)
                )
        longer["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
        return longer

    def _pruned(self, run: Any, inputs: Mapping[str, Any]) -> Run:
        """Run under the config and note what was kept.

        Raises:
            UnsupportedModelError: The pruned model fails; the unpruned one ran before.
        """
        padding = inputs["attention_mask"].eq(0).sum(1).tolist()
        try:
            with Handle(self.family, self.config) as handle, self._watching() as seen:
                done: Run = run()
                if not handle.trace:
                    raise UnsupportedModelError("nothing was pruned: no forward had images")
                trace = handle.trace[0]
        except (PrunetuneError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise failed(error) from error
        length = inputs["input_ids"].shape[1]
        kept = [_kept(trace, b, (first, length), seen) for b, first in enumerate(padding)]
        return Run(done.logits, done.tokens, kept)

    @contextmanager
    def _watching(self) -> Iterator[dict[int, Tensor]]:
        """Note the states that enter each layer whose stage rewrites them, of the first forward."""
        seen: dict[int, Tensor] = {}

        def note(layer: int, args: Any, kwargs: dict[str, Any]) -> None:
            seen.setdefault(layer, args[0] if args else kwargs["hidden_states"])

        with ExitStack() as stack:
            for stage in self.config.stages:
                restorer = stage.restorer
                if restorer is None or type(restorer).blend is Restorer.blend:
                    continue
                # After the runtime's hook on the same layer, whose work it sees.
                hook = self.family.layers[stage.layer].register_forward_pre_hook(
                    lambda _, args, kwargs, k=stage.layer: note(k, args, kwargs), with_kwargs=True
                )
                stack.callback(hook.remove)
            yield seen


class _Forced(LogitsProcessor):  # type: ignore[misc]
    """Makes ``generate`` choose given tokens.

    Args:
        tokens: ``[B, n]`` int64; behind them the most likely ones follow.
        start: Length of the prompt.
    """

    def __init__(self, tokens: Tensor, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores that leave one choice."""
        step = input_ids.shape[1] - self.start
        if step >= self.tokens.shape[1]:
            return scores
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, self.tokens[:, step : step + 1].to(scores.device), 0.0)


def failed(error: Exception) -> UnsupportedModelError:
    """Return the error for a model that runs unpruned, but not pruned."""
    import transformers

    said = " ".join(str(error).split()) or "no message"
    return UnsupportedModelError(
        f"the unpruned model runs, the pruned one fails on transformers {transformers.__version__} "
        f"({type(error).__name__}: {said}); tested versions: prunetune models"
    )


def _kept(trace: ForwardTrace, row: int, ends: tuple[int, int], seen: Mapping[int, Tensor]) -> Kept:
    """Return what one row of a forward kept.

    Args:
        trace: Of the forward.
        row: Which.
        ends: The slot of its first token, and the number of slots.
        seen: ``[B, m, d]`` states of the survivors by layer, padded on the left.
    """
    slots, (first, length) = trace.image_slots[row], ends
    stages, scores, states = [], [], {}
    for stage in trace.stages:
        stay = stage.kept[row]
        stages.append(torch.searchsorted(slots, stay))
        scores.append(torch.cat([part.float() for part in stage.scores[row]]))
        if stage.layer in seen:
            gone = slots[~torch.isin(slots, stay)]
            left = length - first - len(gone)
            place = stay - first - torch.searchsorted(gone, stay)
            survivors = seen[stage.layer][row, -left:]
            states[stage.layer] = survivors[place.to(survivors.device)]
    return Kept(stages, scores, states, trace.lengths[row])
