"""How sure a difference is, and the sentence that is made of it."""

import random
from dataclasses import replace

from fakes import Fake, Picture, search, spec

from prunetune.measure.scores import Scores, accuracy, measure
from prunetune.space.space import Space
from prunetune.study.outcome.baselines import compare_presets
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.summary import Baseline, table_rows
from prunetune.study.outcome.verdict import verdict
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


def scores(gap, accuracy=None):
    return Scores(gap=gap, kl=gap, top1_agreement=0.9, accuracy=accuracy, samples=10)


def row(name, gap, accuracy=None, interval=(-0.2, -0.1)):
    return Baseline(name, scores(gap, accuracy), gap_difference=interval)


def test_the_verdict_is_honest():
    tuned = scores(0.1, 0.8)
    good = verdict(tuned, [row("fastv", 0.2, 0.8), row("random", 0.3, 0.5)])
    assert good.startswith("The tuned config beats every baseline")
    assert "0.1000 against 0.2000 (fastv)" in good
    assert "within noise" in verdict(tuned, [row("fastv", 0.2, 0.8, (-0.2, 0.01))])
    for rows in ([row("fastv", 0.1, 0.5)], [row("fastv", 0.2, 0.81)]):
        assert "does not beat every baseline" in verdict(tuned, rows)
    assert "accuracy" not in verdict(scores(0.1), [row("fastv", 0.2)])
    assert "nothing is known" in verdict(tuned, [Baseline("fastv", None)])


def test_few_held_out_pictures_tell_nothing(tmp_path):
    tuned, rows = scores(0.1, 0.8), [row("fastv", 0.2, 0.8)]
    assert verdict(tuned, rows, pictures=1) == (
        "1 held-out picture is too few to tell whether the tuned config beats every baseline: gap "
        "0.1000 against 0.2000 (fastv); accuracy 80.0% against 80.0% (fastv)."
    )
    assert "does not beat" not in verdict(tuned, [row("fastv", 0.05)], pictures=4)
    itself = replace(row("topv", 0.1, 0.8), is_tuned=True)
    assert "how it compares" in verdict(tuned, [itself, *rows], pictures=4)
    # The twin: as many as say something.
    assert verdict(tuned, rows, pictures=5) == verdict(tuned, rows)
    few = "are too few to tell"
    for folder, fields in (
        ("one", {}),
        ("front", {"objective": "pareto", "keep": 0.05, "up_to": 0.5}),
    ):
        said = search(tmp_path / folder, held_out=Fake(count=16), trials=10, **fields).verdict
        assert f"4 held-out pictures {few}" in said
        said = search(tmp_path / folder, held_out=Fake(count=20), trials=10, **fields).verdict
        assert few not in said


def test_a_preset_that_wins_is_not_compared_with_itself(tmp_path):
    class LikesUniform(Fake):
        def badness(self, config):
            used = [s.name for stage in config.stages for s in stage.scorers]
            return 0.02 if used == ["coverage"] else 0.1

    result = search(tmp_path, LikesUniform(), LikesUniform(), trials=14)
    itself = [row.name for row in result.baselines if row.is_tuned]
    assert itself == ["uniform"]
    assert f"is the preset {itself[0]} itself: nothing better than it was found" in result.verdict
    assert "does not beat every baseline" not in result.verdict
    assert f"({itself[0]}" not in result.verdict
    rows = {row["name"]: row for row in result.to_dict()["baselines"]}
    assert rows[itself[0]]["is_tuned"]
    assert rows[itself[0]]["held_out_gap"] == result.held_out.gap
    assert "the tuned config itself" in str(table_rows(result))
    # The twin: where something better is found, no preset is it.
    found = search(tmp_path / "more", trials=40)
    assert not any(row.is_tuned for row in found.baselines)
    assert "itself" not in found.verdict
    assert "itself" not in str(table_rows(found))


def test_a_preset_that_wins_is_compared_with_the_others():
    itself = replace(row("topv", 0.1, 0.8), is_tuned=True)
    said = verdict(scores(0.1, 0.8), [itself, row("fastv", 0.2, 0.8), row("random", 0.3, 0.5)])
    assert said == (
        "The best config found is the preset topv itself: nothing better than it was found; on "
        "held-out data it beats every other: gap 0.1000 against 0.2000 (fastv); accuracy 80.0% "
        "against 80.0% (fastv)."
    )
    said = verdict(scores(0.1, 0.8), [itself, row("fastv", 0.05, 0.9)])
    assert "does not beat every other (fastv: no higher gap; fastv: higher accuracy)" in said
    assert verdict(scores(0.1), [itself]).endswith("nothing better than it was found.")


def test_accuracy_counts_answered_samples_only(tmp_path):
    assert accuracy([True, None, False]) == 0.5
    assert accuracy([None]) is None
    result = search(tmp_path, Fake(answers=False), Fake(answers=False), trials=3)
    assert result.to_dict()["best"]["accuracy"] is None
    assert "accuracy" not in result.verdict


def test_smaller_pictures_that_are_as_good_are_named():
    tuned = scores(0.1, 0.8)
    smaller = replace(row("resize", 0.09, 0.8), note="0.25 of the pixels")
    said = verdict(tuned, [smaller, row("fastv", 0.2, 0.8)])
    assert (
        "Sending smaller pictures is as good or better: 0.25 of the pixels, nothing pruned" in said
    )
    worse = replace(smaller, scores=scores(0.11, 0.8))
    assert "smaller pictures" not in verdict(tuned, [worse, row("fastv", 0.2, 0.8)])
