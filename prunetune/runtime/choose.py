"""Scores one stage and decides which tokens stay."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetune.config import Stage
from prunetune.numerics import exactly
from prunetune.runtime.images import ImageTokens
from prunetune.runtime.mass import stood_for
from prunetune.runtime.plan import Plan
from prunetune.runtime.taps import LayerTap
from prunetune.scorers import ScoreContext, Scorer
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
    restored: list[tuple[int, Tensor, Tensor]] = []
    for b, row in enumerate(images):
        for m, image in enumerate(row):
            if not len(image.alive):
                image.stage_scores = image.stage_scores[:0]
                continue
            decision = decisions.find((number, b, m))
            separators, patches = _split(image)
            at = place[b, image.slots[patches]]
            ctx = _context(image, stage.layer, patches, at, b, tap)
            memo = image.capture.memo if memoise and number == 0 else None
            # Of an image that the caller hides in parts, nothing but separators may be left.
            scores = (
                _scores(plan, stage, image, patches, ctx, memo)
                if len(patches)
                else image.stage_scores[:0]
            )
            image.stage_scores = scores
            count = keep_count(len(image.slots), stage.retention, len(image.alive))
            kept = (
                _keep(plan, stage, scores, ctx, len(separators), count)
                if decision is None and len(patches)
                else torch.isin(patches, patches[:0] if decision is None else decision)
                .nonzero()
                .flatten()
            )
            if stage.restorer is not None and len(patches):
                states = hidden[b, at]
                weights = _weights(plan, stage, scores, ctx)
                new = stage.restorer.blend(states, scores, kept, ctx.geometry, weights)
                if new is not None:
                    restored.append((b, at[kept], new.to(hidden.dtype)))
            stay = separators[spread_indices(len(separators), count - len(kept), kept.device)]
            alive = torch.cat([patches[kept], stay]).sort().values
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


def _scores(
    plan: Plan,
    stage: Stage,
    image: ImageTokens,
    patches: Tensor,
    ctx: ScoreContext,
    memo: dict[str, Tensor] | None,
) -> Tensor:
    scorers = plan.scorers_of(stage)
    if scorers:
        total = torch.zeros(len(patches), dtype=torch.float32, device=patches.device)
        for scorer in scorers:
            total.add_(_importance(plan, scorer, ctx, memo), alpha=scorer.weight)
        image.importance = torch.zeros(len(image.slots), dtype=torch.float32, device=patches.device)
        image.importance[patches] = total
        return total
    assert image.importance is not None
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
    plan: Plan, stage: Stage, scores: Tensor, ctx: ScoreContext, separators: int, count: int
) -> Tensor:
    _, patches = split_budget(separators, count, plan.separators)
    # Whatever the policy, the count is met exactly: the other kind fills up.
    patches = min(len(scores), max(patches, count - separators))
    if stage.restorer is not None:
        return stage.restorer.keep(scores, patches, ctx.geometry)
    return top_indices(scores, patches)


def _context(
    image: ImageTokens, layer: int, patches: Tensor, at: Tensor, b: int, tap: LayerTap | None
) -> ScoreContext:
    capture = image.capture
    attention = capture.vision_attention
    return ScoreContext(
        geometry=capture.geometry.select(patches),
        layer=layer,
        vision_attention=None if attention is None else attention[patches],
        source_states=None if tap is None else tap.source[b, at],
        target_states=None if tap is None or tap.target is None else tap.target[b, at],
        last_query=None if tap is None or tap.row is None else tap.row[b, at],
        image_seed=capture.seed,
        vision_map=capture.vision_map,
        patch_entropy=capture.patch_entropy,
    )


@exactly()
def _weights(plan: Plan, stage: Stage, scores: Tensor, ctx: ScoreContext) -> Tensor:
    scorers = plan.scorers_of(stage)
    if len(scorers) == 1 and scorers[0].weight > 0:
        return scorers[0].score(ctx).float().clamp_min(1e-6)
    return scores.exp().clamp(1e-6, 1e6)
