"""A search's evaluator: questions about one picture in one row or apart, with the same results."""

import pytest
import torch

from prunetune.calibration import CalibrationSet, load_calibration
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.measure import batching, evaluator
from prunetune.measure.evaluator import Evaluator
from prunetune.models import load_model
from prunetune.presets import load_preset
from prunetune.scorers import SCORERS

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


@pytest.fixture(scope="module")
def measuring(loaded):
    """Groups of four, two and one, in the order of a search: mixed."""
    found, _ = load_calibration("tiny", samples=160)
    pictures = list(dict.fromkeys(s.image_id for s in found))
    sizes = dict(zip(pictures, (4, 2, 1, 4, 3)))
    chosen, taken = [], dict.fromkeys(pictures, 0)
    for sample in found:
        taken[sample.image_id] += 1
        if taken[sample.image_id] <= sizes.get(sample.image_id, 0):
            chosen.append(sample)
    # The very same question twice is two samples.
    return Evaluator(loaded, CalibrationSet((*chosen, chosen[0])), deepest=2, batch_size=3)


def searched(*layers, names=("cls_attention", "topv", "coverage"), restorer=None):
    scorers = tuple(SCORERS.get(n)(name=n) for n in names)
    kept = dict(zip(layers, (0.3, 0.1)))
    stages = tuple(
        Stage(layer=k, retention=r, scorers=scorers, restorer=restorer) for k, r in kept.items()
    )
    return PruningConfig(model=ModelRef(model_type="llava_next", num_layers=16), stages=stages)


def presets():
    options = {"model_type": "llava_next", "num_layers": 16, "keep": 0.25}
    return [load_preset(name, **options)[0] for name in ("fastervlm", "vflowopt", "topv")]


CONFIGS = {
    **dict(zip(("fastervlm", "vflowopt", "topv"), presets())),
    "0+3": searched(0, 3),
    "2+9": searched(2, 9),
    "behind": searched(4),
    "recycled": searched(1, 5, restorer={"name": "grid_recycling"}),
}


def columns(measuring, config, *, shares, answers=False):
    measuring.shares = shares
    found = [pair for batch in measuring.evaluate(config, answers=answers) for pair in batch]
    assert [index for index, _ in found] == list(range(len(measuring.samples)))
    numbers = torch.tensor([[r.gap, r.kl] for _, r in found])
    return numbers, [(r.agrees, r.correct) for _, r in found]


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_evaluator_gives_the_same_either_way(measuring, name, answers, monkeypatch):
    shared = []
    real = evaluator.collate_rows
    monkeypatch.setattr(
        evaluator, "collate_rows", lambda rows, *a, **o: shared.append(rows) or real(rows, *a, **o)
    )
    monkeypatch.setattr(batching, "FIRST_LOOK", 3)
    one = columns(measuring, CONFIGS[name], shares=True, answers=answers)
    assert any(len(row) > 1 for rows in shared for row in rows)
    done = len(shared)
    other = columns(measuring, CONFIGS[name], shares=False, answers=answers)
    assert len(shared) == done
    torch.testing.assert_close(one[0], other[0], atol=TOLERANCE, rtol=0)
    assert one[1] == other[1]


def test_a_config_that_reads_the_question_shares_nothing(measuring, monkeypatch):
    monkeypatch.setattr(evaluator, "collate_rows", None)
    config = searched(2, names=("last_query",))
    assert config.prompt_dependent
    one = columns(measuring, config, shares=True)
    assert torch.equal(one[0], columns(measuring, config, shares=False)[0])
    with pytest.raises(TypeError):
        columns(measuring, CONFIGS["2+9"], shares=True)


def test_a_look_is_taken_before_anything_else_is_measured(measuring, monkeypatch):
    measuring.shares = True
    measured = []
    real = Evaluator._measure

    def noted(self, handle, part, rows, answers):
        measured.extend(part)
        return real(self, handle, part, rows, answers)

    monkeypatch.setattr(Evaluator, "_measure", noted)
    monkeypatch.setattr(batching, "FIRST_LOOK", 3)
    batches = measuring.evaluate(CONFIGS["0+3"], answers=False)
    first = [index for index, _ in next(batches)]
    assert sorted(measured) == first
    # Later ones bring their mates, once each.
    list(batches)
    assert sorted(measured) == list(range(len(measuring.samples)))


def test_long_questions_take_several_rows():
    sizes = [batching.Length(300 + text, 250, 0, 300, "a") for text in (200, 200, 200, 600, 5)]
    sizes += [batching.Length(310, 250, 0, 300, ""), batching.Length(310, 250, 0, 300, "")]
    assert batching.in_rows(range(7), sizes) == [[0, 1], [2], [3], [4], [5], [6]]
    batches = batching.in_batches([[0, 1], [2]], sizes, 0.1, 1 << 20, None)
    assert batches == [[[2], [0, 1]]]
