"""Scores one stage and decides which tokens stay."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetune.config import Stage
from prunetune.numerics import exactly
from prunetune.runtime.choice.plan import Plan
from prunetune.runtime.choice.selecting import selected
from prunetune.runtime.choice.taps import LayerTap, key_states
from prunetune.runtime.layers.mass import stood_for
from prunetune.runtime.vision.images import ImageTokens
from prunetune.scorers import ScoreContext, Scorer
from prunetune.selectors import SelectContext
from prunetune.tokens import keep_count, split_budget, spread_indices, top_indices


@dataclass
class Decisions:
    """What an earlier forward over the same prompt decided, or this one leaves for later ones.

    Attributes:
        made: ``(stage, row, image) -> alive``; None: nothing is remembered.
        replay: Whether they are followed, instead of being made.
    """

    made: dict[tuple[int, int, int], Tensor] | None = None
    replay: bool = False

    def find(self, key: tuple[int, int, int]) -> Tensor | None:
        """Return what was decided, where it is to be followed."""
        return self.made.get(key) if self.replay and self.made is not None else None

    def leave(self, key: tuple[int, int, int], alive: Tensor) -> None:
        """Remember what was decided."""
        if self.made is not None:
            self.made[key] = alive


@exactly()
def choose(
    plan: Plan,
    number: int,
    images: Sequence[Sequence[ImageTokens]],
    hidden: Tensor,
    place: Tensor,
    tap: LayerTap | None,
    decisions: Decisions,
    *,
    memoise: bool,
) -> list[tuple[int, Tensor, Tensor]]:
    """Choose each image's surviving tokens; ``ImageTokens.alive`` is what is left of it.

    Args:
        plan: The config, resolved for the model.
        number: Of the stage, from 0.
        images: Of each batch row.
        hidden: ``[B, m, d]`` states entering the stage's layer.
        place: ``[B, S]`` int64, where each input slot stands in ``hidden``.
        tap: States of the layer before, in the coordinates of ``hidden``.
        decisions: Of an earlier forward, or for later ones.
        memoise: Whether the images' captures keep scores for later trials.

    Returns:
        What the restorer makes of them: (batch row, places in ``hidden``, new states).
    """
    stage = plan.stages[number]
    if tap is not None:
        # Layers may be on several devices; places are counted on one.
        tap = tap.to(place.device)
    restored: list[tuple[int, Tensor, Tensor]] = []
    for b, row in enumerate(images):
        for m, image in enumerate(row):
            if not len(image.alive):
                image.stage_scores = image.stage_scores[:0]
                continue
            memo = image.capture.memo if memoise and number == 0 else None
            looked = _look(plan, stage, image, hidden, place, b, tap, memo)
            image.stage_scores = looked.scores
            count = keep_count(len(image.slots), stage.retention, len(image.alive))
            decision = decisions.find((number, b, m))
            kept = (
                _keep(plan, stage, image, looked, count, memo)
                if decision is None
                else torch.isin(looked.patches, decision).nonzero().flatten()
            )
            if stage.restorer is not None and len(looked.patches):
                ctx, weights = looked.ctx, _weights(plan, stage, looked.scores, looked.ctx)
                states = ctx.given("states")
                new = stage.restorer.blend(states, looked.scores, kept, ctx.geometry, weights)
                if new is not None:
                    restored.append((b, looked.at[kept], new.to(hidden.dtype)))
            thinned = spread_indices(len(looked.separators), count - len(kept), kept.device)
            stay = looked.separators[thinned]
            alive = torch.cat([looked.patches[kept], stay]).sort().values
            if decision is not None:
                alive = decision
            decisions.leave((number, b, m), alive)
            if plan.uses_mass:
                _join(image, alive, hidden[b, place[b, image.slots[image.alive]]])
            image.alive = alive
    return restored


def _join(image: ImageTokens, alive: Tensor, states: Tensor) -> None:
    """Let what a stage drops join what it keeps."""
    kept = torch.isin(image.alive, alive).nonzero().flatten()
    image.mass[alive] = stood_for(states, kept, image.mass[image.alive])


@dataclass(frozen=True)
class _Looked:
    """One image at one stage.

    Attributes:
        separators: ``[s]`` int64, its tokens alive that are no patches.
        patches: ``[n]`` int64, those that are.
        at: ``[n]`` int64, where the patches stand in the states.
        ctx: What scorers may look at.
        parts: ``[n]`` float32 each, standardised, by the scorer's name.
        scores: ``[n]`` float32, the stage's sum.
    """

    separators: Tensor
    patches: Tensor
    at: Tensor
    ctx: ScoreContext
    parts: dict[str, Tensor]
    scores: Tensor


def _look(
    plan: Plan,
    stage: Stage,
    image: ImageTokens,
    hidden: Tensor,
    place: Tensor,
    b: int,
    tap: LayerTap | None,
    memo: dict[str, Tensor] | None,
) -> _Looked:
    separators, patches = _split(image)
    at = place[b, image.slots[patches]]
    ctx = _context(plan, stage, image, patches, hidden, at, b, tap)
    # Of an image that the caller hides in parts, nothing but separators may be left.
    scorers = plan.scorers_of(stage) if len(patches) else []
    parts = {scorer.name: _importance(plan, scorer, ctx, memo) for scorer in scorers}
    scores = _scores(plan, stage, image, patches, parts)
    return _Looked(separators, patches, at, ctx, parts, scores)


def _scores(
    plan: Plan, stage: Stage, image: ImageTokens, patches: Tensor, parts: dict[str, Tensor]
) -> Tensor:
    if parts or image.importance is None:
        total = torch.zeros(len(patches), dtype=torch.float32, device=patches.device)
        for scorer in plan.scorers_of(stage) if parts else ():
            total.add_(parts[scorer.name], alpha=scorer.weight)
        image.importance = torch.zeros(len(image.slots), dtype=torch.float32, device=patches.device)
        image.importance[patches] = total
        return total
    return image.importance[patches]


def _importance(
    plan: Plan, scorer: Scorer, ctx: ScoreContext, memo: dict[str, Tensor] | None
) -> Tensor:
    key = plan.memo_keys.get(id(scorer)) if memo is not None else None
    if memo is None or key is None:
        return scorer.importance(ctx)
    found = memo.get(key)
    if found is None:
        found = memo[key] = scorer.importance(ctx)
    return found


def _split(image: ImageTokens) -> tuple[Tensor, Tensor]:
    separator = image.capture.geometry.separator[image.alive]
    return image.alive[separator], image.alive[~separator]


def _keep(
    plan: Plan,
    stage: Stage,
    image: ImageTokens,
    looked: _Looked,
    count: int,
    memo: dict[str, Tensor] | None,
) -> Tensor:
    scores, separators = looked.scores, len(looked.separators)
    _, patches = split_budget(separators, count, plan.separators)
    # Whatever the policy, the count is met exactly: the other kind fills up.
    patches = min(len(scores), max(patches, count - separators))
    if stage.selector is not None and patches:
        used = stage.selector.uses_scorers
        given = SelectContext(
            features=looked.ctx.given("states"),
            scores=scores,
            geometry=looked.ctx.geometry,
            layer=stage.layer,
            text=image.question,
            importances={name: part for name, part in looked.parts.items() if name in used},
            known=memo,
        )
        return selected(stage.selector, given, patches, memo)
    if stage.restorer is not None and patches:
        return stage.restorer.keep(scores, patches, looked.ctx.geometry)
    return top_indices(scores, patches)


def _context(
    plan: Plan,
    stage: Stage,
    image: ImageTokens,
    patches: Tensor,
    hidden: Tensor,
    at: Tensor,
    b: int,
    tap: LayerTap | None,
) -> ScoreContext:
    capture, needs = image.capture, plan.needs_of(stage)
    attention = capture.vision_attention
    keys = None
    if tap is not None and "keys" in needs:
        keys = key_states(plan.family.layers[stage.layer - 1], tap.source[b, at])
    return ScoreContext(
        geometry=capture.geometry.select(patches),
        layer=stage.layer,
        vision_attention=None if attention is None else attention[patches],
        source_states=None if tap is None else tap.source[b, at],
        target_states=None if tap is None or tap.target is None else tap.target[b, at],
        last_query=None if tap is None or tap.row is None else tap.row[b, at],
        image_seed=capture.seed,
        vision_map=capture.vision_map,
        patch_entropy=capture.patch_entropy,
        states=hidden[b, at] if "states" in needs else None,
        text=image.question,
        keys=keys,
    )


@exactly()
def _weights(plan: Plan, stage: Stage, scores: Tensor, ctx: ScoreContext) -> Tensor:
    scorers = plan.scorers_of(stage)
    if len(scorers) == 1 and scorers[0].weight > 0:
        return scorers[0].score(ctx).float().clamp_min(1e-6)
    return scores.exp().clamp(1e-6, 1e6)
