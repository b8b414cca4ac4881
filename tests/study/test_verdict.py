"""How sure a difference is, and the sentence that is made of it."""

import json
import random
from dataclasses import replace

import pytest
from fakes import Fake, Picture, Result, search, spec

from prunetune.config import PruningConfig
from prunetune.measure.scores import Scores, accuracy, image_ids, measure
from prunetune.space.space import Space
from prunetune.study.outcome.baselines import compare_presets
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.judging import accuracy_difference, judge
from prunetune.study.outcome.summary import Baseline, table_rows
from prunetune.study.outcome.verdict import TOO_FEW, verdict
from prunetune.study.trials.trials import presets_at


def test_the_bootstrap_interval_holds_the_mean_and_knows_groups():
    values = [random.Random(i).random() for i in range(200)]
    low, high = bootstrap_ci(values)
    assert low < sum(values) / 200 < high
    assert bootstrap_ci(values) == (low, high)
    # The same value four times an image is no new knowledge.
    fourfold, images = [v for v in values[:50] for _ in range(4)], [str(i // 4) for i in range(200)]
    alone, together = bootstrap_ci(fourfold), bootstrap_ci(fourfold, images)
    assert 1.7 < (together[1] - together[0]) / (alone[1] - alone[0]) < 2.4


def test_a_question_asked_four_times_is_no_new_evidence():
    def p_value(times, images):
        held_out = Fake(count=8 * times)
        held_out.noise = [1.0 + 0.1 * (i // times) for i in range(8 * times)]
        held_out.samples = [
            Picture(str(i // times) if images else str(i)) for i in range(8 * times)
        ]
        preset = presets_at(["uniform"], Space.of(spec(), held_out.facts()))[0]
        theirs = measure(held_out, preset.config)
        # Two of eight pictures lose.
        signs = [1 if i // times < 2 else -1 for i in range(8 * times)]
        ours = [replace(r, gap=r.gap * (1 + 0.1 * s)) for r, s in zip(theirs, signs, strict=True)]
        return compare_presets([preset], {"tuned": ours}, held_out, held_out.facts(), 0)[0].p_value

    once = p_value(1, images=True)
    assert 0.005 < once < 0.2
    assert p_value(4, images=True) == once
    # The twin: as many pictures would be evidence.
    assert p_value(4, images=False) < once / 3


def results(gap, right, agrees=True):
    """Return results on as many samples as ``right`` has letters: y answers it, n does not."""
    known = {"y": True, "n": False, "-": None}
    return [Result(gap, gap, agrees, known[letter]) for letter in right]


def judged(tuned, others, unpruned=None, *, pictures=None, itself=(), promise_kept=None):
    """Judge results against baselines by name, as a search does."""
    held_out = Fake(count=len(tuned))
    held_out.samples = [Picture(str(i % (pictures or len(tuned)))) for i in range(len(tuned))]
    images = image_ids(held_out.samples)
    answers = [r.correct is not None for r in tuned]
    held_out.unpruned_correct = unpruned or [True if a else None for a in answers]
    rows = []
    for name, theirs in others.items():
        count = len(theirs)
        ours, shown = tuned[:count], images[:count]
        difference = [a.gap - b.gap for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            Baseline(
                name,
                Scores.of(theirs),
                stopped=f"after {count}: the time was up" if count < len(tuned) else "",
                gap_difference=bootstrap_ci(difference, shown),
                accuracy_difference=accuracy_difference(ours, theirs, shown),
                is_tuned=name in itself,
            )
        )
    return judge(
        tuned,
        held_out.unpruned_correct,
        images,
        rows,
        costs=(0.1, 0.13),
        promise_kept=promise_kept,
    )


MOST, HALF = "y" * 90 + "n" * 10, "y" * 50 + "n" * 50


def test_the_verdict_speaks_about_unpruned_first():
    found = judged(results(0.1, MOST), {"fastv": results(0.2, HALF)}, [True] * 100)
    assert verdict(found) == (
        "Against unpruned it loses 10.0 points of accuracy (3.4 to 16.6) of 100.0%, keeps 10% of "
        "the visual KV cache and needs 0.13x the prefill FLOPs. It is better than the best "
        "baseline, fastv, and than every other: +40.0 points of accuracy (+29.8 to +50.2), gap "
        "0.1000 against 0.2000."
    )
    assert (found.outcome, found.tick, found.problem) == ("better", True, None)
    lost = found.unpruned.accuracy
    assert (lost.mean, lost.of, lost.beyond_noise) == (pytest.approx(0.1), 1.0, True)
    assert found.best_baseline.ahead == pytest.approx(0.4)
    # Without labels the same with the gap and the next token.
    blank = "-" * 100
    found = judged(results(0.1, blank), {"fastv": results(0.2, blank)})
    assert found.unpruned.accuracy is None
    assert found.best_baseline.measure == "gap"
    assert found.tick
    said = verdict(found)
    assert said.startswith("Against unpruned it has a gap of 0.1000 (0.1000 to 0.1000) and another")
    assert "accuracy" not in said


def test_a_tie_is_a_tie_and_has_no_tick():
    near = "y" * 89 + "n" * 11
    found = judged(results(0.1, MOST), {"fastv": results(0.2, near), "topv": results(0.3, HALF)})
    assert "It ties with the best baseline, fastv: +1.0 points of accuracy (-2.4" in verdict(found)
    assert (found.outcome, found.tick) == ("tie", False)
    assert found.baselines == {"tie": ("fastv",), "better": ("topv",)}
    worse = judged(results(0.1, HALF), {"fastv": results(0.2, MOST)})
    assert "The best baseline, fastv, is better: -40.0 points" in verdict(worse)
    assert (worse.outcome, worse.tick) == ("worse", False)
    # One that keeps its promise may tie, but not lose.
    kept = [judged(results(0.1, MOST), {"fastv": results(0.2, other)}, promise_kept=True)
            for other in (near, "y" * 100)]  # fmt: skip
    assert [one.tick for one in kept] == [True, False]


def test_what_says_nothing_has_no_tick():
    none = "n" * 100
    wrong = judged(results(0.1, none), {"fastv": results(0.2, none)}, [False] * 100)
    assert (wrong.problem, wrong.outcome, wrong.tick) == (
        "unpruned_answers_nothing", "unknown", False,
    )  # fmt: skip
    assert "the data or the form of its answers is wrong" in verdict(wrong)
    assert "points of accuracy (" not in verdict(wrong).partition("The best baseline")[0]
    for kept in (None, True):
        broken = judged(results(0.1, none), {"fastv": results(0.2, none)}, promise_kept=kept)
        assert (broken.problem, broken.tick) == ("answers_nothing", False)
    assert verdict(broken).startswith("Do not ship it: it answers nothing right")
    alone = judged(results(0.1, MOST), {})
    assert (alone.problem, alone.tick) == ("no_baseline", False)
    assert "of the gain nothing is known" in verdict(alone)


def test_the_best_baseline_is_one_of_those_that_were_measured_the_longest():
    tuned = results(0.1, "y" * 60 + "n" * 20)
    few, more, whole = (
        results(0.2, "y" * 8),
        results(0.3, "y" * 20 + "n" * 20),
        results(0.4, "n" * 80),
    )
    assert judged(tuned, {"few": few, "more": more}).best_baseline.name == "more"
    assert judged(tuned, {"few": few, "more": more, "whole": whole}).best_baseline.name == "whole"
    # The twin: alone it is what is known.
    assert judged(tuned, {"few": few}).best_baseline.name == "few"


def test_few_held_out_pictures_tell_nothing(tmp_path):
    few = judged(results(0.1, MOST), {"fastv": results(0.2, HALF)}, pictures=4)
    assert (few.problem, few.outcome, few.tick) == ("too_few_pictures", "unknown", False)
    assert verdict(few).startswith("4 held-out pictures are too few to tell.")
    assert "better" not in verdict(few)
    # The twin: as many as say something.
    assert judged(results(0.1, MOST), {"fastv": results(0.2, HALF)}, pictures=5).problem is None
    for folder, fields in (
        ("one", {}),
        ("front", {"objective": "pareto", "keep": 0.05, "up_to": 0.5}),
    ):
        said = search(tmp_path / folder, held_out=Fake(count=16), trials=10, **fields).verdict
        assert f"4 held-out pictures are {TOO_FEW}" in said
        said = search(tmp_path / folder, held_out=Fake(count=20), trials=10, **fields).verdict
        assert TOO_FEW not in said


def test_a_preset_that_wins_is_not_compared_with_itself(tmp_path):
    class LikesUniform(Fake):
        def badness(self, config):
            used = [s.name for stage in config.stages for s in stage.scorers]
            return 0.02 if used == ["coverage"] else 0.1

    result = search(tmp_path, LikesUniform(), LikesUniform(), trials=14)
    itself = [row.name for row in result.baselines if row.is_tuned]
    assert itself == ["uniform"]
    assert "It is the preset uniform itself: nothing better than it was found." in result.verdict
    assert result.judged.itself == ("uniform",)
    assert not result.judged.tick
    assert result.judged.best_baseline.name != "uniform"
    rows = {row["name"]: row for row in result.to_dict()["baselines"]}
    assert rows[itself[0]]["is_tuned"]
    assert rows[itself[0]]["held_out_gap"] == result.held_out.gap
    assert "the tuned config itself" in str(table_rows(result))
    # The twin: where something better is found, no preset is it.
    found = search(tmp_path / "more", trials=40)
    assert not any(row.is_tuned for row in found.baselines)
    assert "itself" not in found.verdict
    assert "itself" not in str(table_rows(found))


def test_the_config_says_what_it_is_worth(tmp_path):
    result = search(tmp_path, trials=14)
    made = PruningConfig.load(tmp_path / "config.json").provenance
    assert made.judged == result.judged
    assert result.to_dict()["judged"] == json.loads(made.judged.model_dump_json())
    assert made.judged.kv_ratio == pytest.approx(0.25, abs=1e-6)


def test_accuracy_counts_answered_samples_only(tmp_path):
    assert accuracy([True, None, False]) == 0.5
    assert accuracy([None]) is None
    result = search(tmp_path, Fake(answers=False), Fake(answers=False), trials=3)
    assert result.to_dict()["best"]["accuracy"] is None
    assert "accuracy" not in result.verdict


def test_smaller_pictures_that_are_as_good_are_named():
    said = verdict(
        judged(
            results(0.1, MOST),
            {"resize": results(0.2, "y" * 89 + "n" * 11), "fastv": results(0.1, MOST)},
        )
    )
    assert "Sending smaller pictures, with nothing pruned, is no worse." in said
    best = judged(results(0.1, MOST), {"resize": results(0.1, MOST)})
    assert "ties with the best baseline, resize (smaller pictures, nothing pruned)" in verdict(best)
    worse = judged(results(0.1, MOST), {"resize": results(0.2, HALF)})
    assert "no worse" not in verdict(worse)
