"""Restored states are what every later layer sees, and counts hold after restoring."""

import pytest
import torch
from reference import alive_slots, reference_logits, worst
from reference_models import THOROUGH, make_batch, make_config, tiny
from test_runtime import TOLERANCE, check_counts
from test_runtime_geometry import token_geometries
from test_runtime_taps import Probe, patches_before

import prunetune
from prunetune.restorers import RESTORERS, Restorer

NAMES = ("blend", *RESTORERS)


class Blend(Restorer):
    """Gives every kept token a part of the mean, so that a lost or misplaced blend is seen."""

    name: str = "blend"

    def blend(self, states, scores, keep, geometry, weights):
        return states[keep] + 0.2 * (scores + weights.sqrt())[keep, None] * states.mean(0)


def images_of(trace, geometries):
    """Yield each image's row of slots, its geometry and the place of its first token there."""
    for own, images in zip(trace.image_slots, geometries, strict=True):
        first = 0
        for geometry in images:
            yield own, geometry, first
            first += len(geometry)


def blended(made, config, batch, geometries, trace, stage, moved):
    """Return a function that does to full-length states what a stage's restorer does."""
    single = len(config.stages[stage].scorers) == 1

    def rewrite(states):
        states = states.clone()
        alive = iter(patches_before(batch, geometries, trace, stage))
        scores = iter([image for row in trace.stages[stage].scores for image in row])
        for own, whole, first in images_of(trace, geometries):
            (row, slots), score = next(alive), next(scores)
            geometry = whole.select(torch.searchsorted(own, slots) - first)
            mass = Probe.of(geometry, config.stages[stage].layer) if single else score.exp()
            keep = torch.isin(slots, trace.stages[stage].kept[row]).nonzero().flatten()
            new = made.blend(states[row, slots], score, keep, geometry, mass.clamp_min(1e-6))
            if new is not None:
                moved.append(worst(new, states[row, slots[keep]]))
                states[row, slots[keep]] = new
        return states

    return rewrite


@pytest.mark.parametrize("scorers", [(Probe(),), (Probe(weight=0.5), "coverage")], ids=len)
@pytest.mark.parametrize("restorer", NAMES)
@pytest.mark.parametrize("layer", [0, 2])
def test_restorers(layer, restorer, scorers):
    """On both families in turn, so that each restorer meets both, and both layers."""
    turn = NAMES.index(restorer) + layer // 2 + len(scorers)
    check_restorer(THOROUGH[turn % 2], layer, restorer, scorers)


def check_restorer(family, layer, restorer, scorers):
    model, plain = tiny(family), tiny(family)
    batch = make_batch(model)
    made = Blend() if restorer == "blend" else RESTORERS.get(restorer)()
    if layer == 0:
        scorers = tuple("coverage" if isinstance(s, Probe) else s for s in scorers[:1])
        scorers += ({"name": "random", "weight": 0.5},)
    stages = [(layer, 0.6, scorers, made), (4, 0.4, (), made), (5, 0.3, ("random",))]
    config = make_config(model, stages)
    geometries, moved = token_geometries(model, batch), []
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        logits = model(**batch.inputs).logits
        trace = handle.trace[-1]
    check_counts(trace, batch, config)
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    survives = batch.valid & alive[-1]
    rewrites = {
        stage.layer: blended(made, config, batch, geometries, trace, i, moved)
        for i, stage in enumerate(config.stages[:2])
    }
    reference = reference_logits(plain, batch, alive, rewrite=rewrites)
    assert worst(logits[survives], reference[survives]) < 2 * TOLERANCE
    assert bool(moved) == (type(made).blend is not Restorer.blend)
    assert not moved or max(moved) > 0.1
