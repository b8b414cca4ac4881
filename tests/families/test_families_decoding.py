"""The contract that every family meets, continued: beams, candidates, kernels, restorers."""

import copy

import family_models
import pytest
import test_runtime_generate
import test_runtime_restorers
import test_runtime_taps
import torch
import transformers
from family_models import each
from packaging.version import Version
from reference import alive_slots, masked, worst
from reference_models import make_batch, make_config, tiny
from test_families import TOLERANCE, every, schedule
from test_runtime_generate import flash_model

from prunetune.families import FAMILIES as TABLE
from prunetune.families import Family
from prunetune.restorers import RESTORERS

__all__ = ["flash_model"]  # a fixture
CELLS = ("cell_mean", "grid_recycling")
CAUSAL = [n for n in family_models.FAMILIES if TABLE.get(n).blocks is Family.blocks]


@every
@torch.no_grad()
def test_beams(family):
    """One image a prompt: with several, transformers before 5.19 mixes them up."""
    spec, model = family_models.family(family), tiny(family)
    rows = ((2, spec.image, 3), (3, spec.other, 2))
    if spec.beam is not True:
        pytest.skip(str(spec.beam))
    if spec.views_apart and Version(transformers.__version__) < Version("5.19"):
        pytest.skip("transformers before 5.19 mixes up the tiles of a picture under beams")
    if spec.cached_beams is not True:
        pytest.skip(str(spec.cached_beams))
    check_beams(model, make_batch(model, rows), make_config(model, schedule("2+4", family)))


@every
@family_models.needs("5.19", "it mixes up the images of prompts that have several")
@torch.no_grad()
def test_beams_with_several_images(family):
    spec = family_models.family(family)
    if (reason := spec.beams if spec.beam is True else spec.beam) is not True:
        pytest.skip(str(reason))
    model = tiny(family)
    check_beams(model, make_batch(model), make_config(model, schedule("0+1+3", family)))


def check_beams(model, batch, config):
    """Transformers' own beam search over the masked, cache-less model is the reference."""
    plain = copy.deepcopy(model)
    output, trace = test_runtime_generate.pruned(model, config, batch, num_beams=3)
    copies = len(trace.image_slots) // len(batch.images)
    valid = batch.valid.repeat_interleave(copies, 0)
    with masked(plain, valid, alive_slots(tuple(valid.shape), (0, trace))):
        expected = test_runtime_generate.generate(plain, batch, use_cache=False, num_beams=3)
    assert torch.equal(output.sequences, expected.sequences)
    assert worst(torch.stack(output.logits), torch.stack(expected.logits)) < TOLERANCE
    assert worst(output.sequences_scores, expected.sequences_scores) < TOLERANCE


@every
def test_prompt_lookup(family, monkeypatch):
    lookup = family_models.family(family).lookup
    if lookup is not True:
        pytest.skip(str(lookup))
    test_runtime_generate.test_prompt_lookup_equals_greedy(family, "0+1+3", monkeypatch)


@pytest.mark.parametrize("family", each(*CAUSAL))
@pytest.mark.parametrize(("name", "rows"), [("0+1+3", None), ("2+4", slice(0, 1))], ids=str)
@torch.no_grad()
def test_flash_attention_equals_sdpa(family, name, rows, flash_model):
    """Emulated, see there. It is always causal: no choice where images attend both ways."""
    if (flash := family_models.family(family).flash) is not True:
        pytest.skip(str(flash))
    plain, model = tiny(family), flash_model(family)
    batch = make_batch(plain, rows and family_models.family(family).rows[rows])
    config = make_config(plain, schedule(name, family))
    expected, first = test_runtime_generate.pruned(plain, config, batch)
    output, second = test_runtime_generate.pruned(model, config, batch)
    for one, two in zip(first.stages, second.stages, strict=True):
        assert all(map(torch.equal, one.kept, two.kept))
    assert worst(torch.stack(output.logits), torch.stack(expected.logits)) < TOLERANCE


@every
@pytest.mark.parametrize("kind", ["blend", "by cells", "others"])
def test_restorers(family, kind):
    """What a restorer makes of cells depends on a family's grids: each has one of either kind."""
    turn = list(family_models.FAMILIES).index(family)
    others = [name for name in RESTORERS if name not in CELLS]
    among = {"blend": ("blend",), "by cells": CELLS, "others": others}[kind]
    restorer = among[turn % len(among)]
    probe = (test_runtime_taps.probe_of(family),)
    test_runtime_restorers.check_restorer(family, 2, restorer, probe)
