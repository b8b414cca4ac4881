"""Scores one stage and decides which tokens stay."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunetune.config import Stage
from prunetune.numerics import exactly
from prunetune.runtime.images import ImageTokens
from prunetune.runtime.taps import LayerTap
from prunetune.scorers import ScoreContext, Scorer
from prunetune.tokens import keep_count, split_budget, spread_indices, top_indices

if TYPE_CHECKING:
    from prunetune.runtime.frame import Frame
    from prunetune.runtime.plan import Plan


def _scores(
    frame: "Frame", stage: Stage, image: ImageTokens, patches: Tensor, ctx: ScoreContext
) -> Tensor:
    scorers = frame.plan.scorers_of(stage)
    if scorers:
        memo = image.capture.memo if frame.memoise and frame.stage == 0 else None
        total = torch.zeros(len(patches), dtype=torch.float32, device=patches.device)
        for scorer in scorers:
            total.add_(_importance(frame.plan, scorer, ctx, memo), alpha=scorer.weight)
        image.importance = torch.zeros_like(image.slots, dtype=torch.float32)
        image.importance[patches] = total
        return total
    assert image.importance is not None
    return image.importance[patches]


def _importance(
    plan: "Plan", scorer: Scorer, ctx: ScoreContext, memo: dict[str, Tensor] | None
) -> Tensor:
    key = plan.memo_keys.get(id(scorer)) if memo is not None else None
    if memo is None or key is None:
        return scorer.importance(ctx)
    found = memo.get(key)
    if found is None:
        found = memo[key] = scorer.importance(ctx)
    return found


@exactly()
def choose(
    frame: "Frame", stage: Stage, hidden: Tensor, place: Tensor, tap: LayerTap | None
) -> list[tuple[int, Tensor, Tensor]]:
    """Choose each image's surviving tokens and update the frame.

    Args:
        frame: The forward.
        stage: The stage to run.
        hidden: ``[B, m, d]`` states entering the stage's layer.
        place: ``[B, S]`` int64, where each input slot stands in ``hidden``.
        tap: States of the layer before, in the coordinates of ``hidden``.

    Returns:
        What the restorer makes of them: (batch row, places in ``hidden``, new states).
    """
    assert frame.alive is not None
    restored: list[tuple[int, Tensor, Tensor]] = []
    for b, row in enumerate(frame.rows):
        for m, image in enumerate(row):
            decision = None
            if frame.replay and frame.capture is not None:
                decision = frame.capture.decisions.get((frame.stage, b, m))
            separators, patches = _split(image)
            at = place[b, image.slots[patches]]
            ctx = _context(image, stage.layer, patches, at, b, tap)
            scores = _scores(frame, stage, image, patches, ctx)
            image.stage_scores = scores
            count = keep_count(len(image.slots), stage.retention, len(image.alive))
            kept = (
                _keep(frame.plan, stage, scores, ctx, len(separators), count)
                if decision is None
                else torch.isin(patches, decision).nonzero().flatten()
            )
            if stage.restorer is not None:
                states = hidden[b, at]
                mass = _mass(frame.plan, stage, scores, ctx)
                new = stage.restorer.blend(states, scores, kept, ctx.geometry, mass)
                if new is not None:
                    restored.append((b, at[kept], new.to(hidden.dtype)))
            stay = separators[spread_indices(len(separators), count - len(kept), kept.device)]
            alive = torch.cat([patches[kept], stay]).sort().values
            if decision is not None:
                alive = decision
            elif frame.capture is not None and frame.input_ids is not None and frame.cache is None:
                frame.capture.decisions[(frame.stage, b, m)] = alive
            gone = torch.ones(len(image.slots), dtype=torch.bool, device=alive.device)
            gone[alive] = False
            frame.alive[b, image.slots[gone]] = False
            image.alive = alive
    return restored


def _split(image: ImageTokens) -> tuple[Tensor, Tensor]:
    separator = image.capture.geometry.separator[image.alive]
    return image.alive[separator], image.alive[~separator]


def _keep(
    plan: "Plan", stage: Stage, scores: Tensor, ctx: ScoreContext, separators: int, count: int
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
def _mass(plan: "Plan", stage: Stage, scores: Tensor, ctx: ScoreContext) -> Tensor:
    scorers = plan.scorers_of(stage)
    if len(scorers) == 1 and scorers[0].weight > 0:
        return scorers[0].score(ctx).float().clamp_min(1e-6)
    return scores.exp().clamp(1e-6, 1e6)
