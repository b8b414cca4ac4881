"""The held-out table: what is left early is called what all of its samples would have it called."""

import random

import pytest
from fakes import Fake, Picture, Result

from prunetune.presets import load_preset
from prunetune.study.outcome.baselines import compare_presets
from prunetune.study.outcome.judging import beaten, judge
from prunetune.study.outcome.promise import lost
from prunetune.study.trials.trials import Preset

COUNT, PER = 480, 4
FACTS = Fake().facts()
CONFIGS = {
    name: load_preset(name, model_type="llava_next", num_layers=16, keep=0.25)[0]
    for name in ("uniform", "fastv", "topv")
}


class Split:
    """Held-out samples on which each rival does what it is told to do."""

    def __init__(self, rivals):
        self.samples = [Picture(f"image{i // PER}") for i in range(COUNT)]
        self.images = [sample.image_id for sample in self.samples]
        self.unpruned_correct = [True] * COUNT
        self._rows = {CONFIGS[name].digest(): rows for name, rows in rivals.items()}

    def evaluate(self, config, *, answers=True):
        rows = self._rows[config.digest()]
        for first in range(0, COUNT, 16):
            yield [(i, rows[i]) for i in range(first, first + 16)]


def compared(tuned, rivals, config=None):
    """Return the table's rows by name, and what is said of each."""
    held, presets = Split(rivals), [Preset(name, CONFIGS[name], "") for name in rivals]
    rows = compare_presets(presets, {"tuned": tuned}, held, FACTS, 0, config)
    found = judge(tuned, held.unpruned_correct, held.images, rows, costs=(0.25, 0.3))
    said = {name: outcome for outcome, names in found.baselines.items() for name in names}
    return {row.name: row for row in rows}, said, found


def results(right, gap):
    return [Result(gap(i), gap(i), True, answer) for i, answer in enumerate(right)]


def test_a_rival_whose_mistakes_come_first_is_not_called_beaten():
    """Red while it was left as soon as its interval said so, and called by that interval."""
    early = [not (i % 8 == 0 and i < 320) for i in range(COUNT)]
    late = [not (i % 4 == 0 and i >= 320) for i in range(COUNT)]
    assert early.count(False) == late.count(False) == 40
    tuned = results(late, lambda i: 0.05)
    rivals = {
        "uniform": results([i % 16 != 0 for i in range(COUNT)], lambda i: 0.06),
        "fastv": results(early, lambda i: 0.4 if i < 400 else 0.05),
    }
    rows, said, _ = compared(tuned, rivals)
    assert (rows["fastv"].scores.samples, said["fastv"]) == (COUNT, "tie")
    # The twin: one that gives wrong answers all the time is left, and is the best nowhere.
    rivals["fastv"] = results([i % 4 != 0 for i in range(COUNT)], lambda i: 0.4)
    rows, said, found = compared(tuned, rivals)
    assert rows["fastv"].scores.samples < 0.9 * COUNT
    assert (rows["fastv"].beaten, said["fastv"]) == (True, "better")
    assert found.best_baseline.name == "uniform"
    # An interval that ends when it says something says nothing.
    row = rows["fastv"]
    assert row.gap_difference is row.accuracy_difference is row.p_value is None
    assert row.note.startswith(f"stopped after {row.scores.samples} of {COUNT} samples")


@pytest.mark.parametrize("answers", [True, False])
def test_what_is_left_early_is_called_what_the_whole_split_calls_it(answers):
    left = 0
    for seed in range(12):
        draw = random.Random(seed)
        base = [draw.random() for _ in range(COUNT)]

        def drawn(wrong, gap, base=base, draw=draw):
            right = [u > wrong or draw.random() < 0.1 for u in base]
            return results(
                right if answers else [None] * COUNT, lambda i: gap * draw.uniform(0.5, 1.5)
            )

        tuned, strong = drawn(0.1, 0.05), drawn(0.1, 0.055)
        weak = drawn(*draw.choice([(0.13, 0.06), (0.2, 0.08), (0.4, 0.15)]))
        rows, said, _ = compared(tuned, {"uniform": strong, "fastv": weak})
        # Alone it is measured whole: there is no best rival yet.
        whole, alone, _ = compared(tuned, {"fastv": weak})
        assert whole["fastv"].scores.samples == COUNT
        assert said["fastv"] == alone["fastv"]
        left += rows["fastv"].beaten
    assert left > 2


def test_whatever_the_rest_is_a_beaten_rival_stays_beaten():
    """Pictures of one to five samples, at every number of samples, against drawn ends."""
    found = early = 0
    for seed in range(60):
        draw = random.Random(seed)
        images = [name for k in range(16) for name in [str(k)] * draw.randint(1, 5)]
        tuned = [Result(0.0, 0.0, True, draw.random() < 0.97) for _ in images]
        share = draw.choice([0.5, 0.9])
        first = [Result(0.1, 0.1, True, draw.random() > share) for _ in images]
        for count in range(len(images) // 2, len(images), 3):
            if not beaten(tuned, first[:count], images, seed):
                continue
            found += 1
            early += count < 0.9 * len(images)
            for _ in range(8):
                whole, wrong = list(images[count:]), draw.sample(sorted(set(images[count:])), 1)
                rest = [image not in wrong for image in whole]
                rest = draw.choice([rest, [draw.random() < 0.5 for _ in whole]])
                right = [r.correct for r in first[:count]] + rest
                apart = [float(t.correct) - float(r) for t, r in zip(tuned, right, strict=True)]
                assert lost(apart, images).low > 0
    assert found > early > 5


def test_a_wrong_answer_more_can_lower_the_interval():
    """Why the rest in the rival's favour is not enough for answers."""
    images = [str(i // 8) for i in range(104)]

    def low(wrong):
        return lost(
            [float(i % 8 == 0 if i < 96 else i - 96 < wrong) for i in range(104)], images
        ).low

    # One wrong answer about each picture, but of the last one.
    assert 0 < low(8) < low(0) < low(1)


def test_the_best_rival_is_measured_whole_where_another_is_the_tuned_config_itself():
    tuned = results([True] * COUNT, lambda i: 0.05)
    weak = results([i % 2 == 0 for i in range(COUNT)], lambda i: 0.4)
    rivals = {"uniform": tuned, "fastv": weak}
    rows, said, found = compared(tuned, rivals, CONFIGS["uniform"])
    assert rows["uniform"].is_tuned
    assert (rows["fastv"].stopped, said) == ("", {"fastv": "better"})
    assert found.best_baseline.name == "fastv"
    # The twin: beside a better one it is left.
    rivals["topv"] = results([i % 8 != 0 for i in range(COUNT)], lambda i: 0.2)
    rows, said, found = compared(tuned, rivals, CONFIGS["uniform"])
    assert rows["fastv"].beaten
    assert found.best_baseline.name == "topv"
    assert said == {"fastv": "better", "topv": "better"}
