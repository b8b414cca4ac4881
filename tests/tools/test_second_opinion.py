"""The page of witnesses says no more than its rows do."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from second_opinion_claims import Table, judged, verdicts
from second_opinion_page import page

KINDS, PICTURES = ("color", "count"), 40


def row(name, group, rate, witness="a", **more):
    """A case that answers a share of each kind of question rightly, the same ones for all rows."""
    shares = np.linspace(0, 1, PICTURES, endpoint=False)
    rates = dict(zip(KINDS, rate, strict=True))
    samples = [[0.1, 0.2, int(share < rates[kind])] for share in shares for kind in KINDS]
    return {
        "witness": witness, "keep": 0.1, "name": name, "group": group, "note": "",
        "samples": samples, **more,
    }  # fmt: skip


def rows(searched, witness="a", uniform=(0.2, 0.6)):
    about = {
        "types": list(KINDS) * PICTURES,
        "images": [str(i) for i in range(PICTURES) for _ in KINDS],
        "digest": "d" * 64,
    }
    return [
        row("unpruned", "unpruned", (1, 1), witness, **about),
        row("fastervlm", "preset", (0.6, 0.2), witness),
        row("uniform", "preset", uniform, witness),
        row("divprune", "preset", (0.3, 0.3), witness),
        row("selector cover", "selector", (0.4, 0.3), witness),
        row("searched with mass, seed 0", "searched with mass", searched, witness),
        row("searched without mass, seed 0", "searched without mass", (0.6, 0.6), witness),
    ]


@pytest.mark.parametrize(
    ("searched", "word"), [((1, 1), "ahead of"), ((0.4, 0.4), "not told"), ((0, 0), "behind")]
)
def test_a_search_is_judged_by_the_interval(searched, word):
    said = verdicts(Table(rows(searched)))
    assert said["search against the best preset or control"].words.startswith(word)


def test_every_seed_has_to_agree():
    assert judged([(5, 1), (4, 1)], "x").words.startswith("ahead of x: +4.5")
    assert judged([(5, 1), (4, 6)], "x").words.startswith("not told apart")


def test_ways_win_the_kinds_that_they_lead_alone():
    won = verdicts(Table(rows((1, 1))))["kinds of questions won alone (no test)"]
    assert won.words == "saliency: color; set selection: none; even spread: count"
    tied = verdicts(Table(rows((1, 1), uniform=(0.6, 0.6))))
    assert "saliency: none" in tied["kinds of questions won alone (no test)"].words


def test_one_witness_says_that_nothing_carries_over():
    assert "nothing can be said to carry over" in page(rows((1, 1)))
    both = page([*rows((1, 1)), *rows((1, 1), "b")])
    assert "nothing can be said" not in both
    assert "| a and b | 0.1 | 1.00 over 4 untuned cases |" in both


@pytest.mark.parametrize(
    ("other", "alike"),
    [((1, 1), "preset or control (ahead)"), ((0, 0), "nothing"), ((0.4, 0.4), "nothing")],
)
def test_a_claim_carries_over_only_where_all_are_on_one_side(other, alike):
    text = page([*rows((1, 1)), *rows(other, "b")])
    [said] = [line for line in text.splitlines() if line.startswith("The same on all 2 witnesses")]
    same, different = said.split(" Different, ")
    assert ("search against the best " + alike in same) == (alike != "nothing")
    assert ("search against the best" in different) == (alike == "nothing")


def test_uniform_is_asked_about_where_it_wins_too():
    asked = "`uniform` against the best other"
    assert verdicts(Table(rows((1, 1))))[asked].side == "not told apart"
    assert verdicts(Table(rows((1, 1), uniform=(1, 1))))[asked].side == "ahead"
    assert verdicts(Table(rows((1, 1), uniform=(0, 0))))[asked].side == "behind"
    text = page([*rows((1, 1), uniform=(0, 0)), *rows((1, 1), "b", uniform=(1, 1))])
    [said] = [line for line in text.splitlines() if line.startswith("The same on all 2 witnesses")]
    assert "`uniform`" in said.split(" Different, ")[1]


def test_the_best_of_many_equals_is_not_told_from_one_more_of_them():
    rng, called = np.random.default_rng(0), {"chosen on the other half": 0, "on the same": 0}
    kinds, pictures, draws = 2, 60, 60
    about = {"types": ["color"] * kinds * pictures, "digest": "d"}
    about["images"] = [str(i) for i in range(pictures) for _ in range(kinds)]
    names = ["uniform", *(f"method {i}" for i in range(30))]
    for _ in range(draws):
        answers = {name: rng.random(kinds * pictures) < 0.6 for name in names}
        mine = [row("unpruned", "unpruned", (1, 1)) | about]
        mine += [
            row(name, "preset", (1, 1)) | {"samples": [[0, 0, int(ok)] for ok in right]}
            for name, right in answers.items()
        ]
        mine[0]["samples"] = [[0, 0, 1]] * (kinds * pictures)
        table = Table(mine)
        side = verdicts(table)["`uniform` against the best other"].side
        called["chosen on the other half"] += side == "behind"
        best = table.best(names[1:])
        called["on the same"] += judged([table.more("uniform", best)], "").side == "behind"
    assert called["chosen on the other half"] <= 0.08 * draws
    assert called["on the same"] > 0.1 * draws, "the twin: what is guarded against happens"


def test_a_claim_needs_every_budget_that_is_measured():
    lower = [r | {"keep": 0.05} for r in rows((1, 1), "b") if "searched" not in r["name"]]
    text = page([*rows((1, 1)), *rows((1, 1), "b"), *lower])
    [said] = [line for line in text.splitlines() if line.startswith("The same on all 2 witnesses")]
    every, partly = said.split(" The same where it was measured")
    asked = "search against the best preset or control (ahead)"
    assert asked not in every
    assert asked in partly.split(" Different, ")[0]


def test_a_search_may_have_a_smaller_gap_without_better_answers():
    rng, mine = np.random.default_rng(0), rows((0.4, 0.4))
    asked = "gap of a search against the least gap of these"
    assert verdicts(Table(mine))[asked].side == "not told apart"
    for one in mine:
        low = 0.05 if one["name"] == "searched with mass, seed 0" else 0.1
        one["samples"] = [[low + 0.01 * rng.random(), *rest] for _, *rest in one["samples"]]
    said = verdicts(Table(mine))
    assert said[asked].side == "ahead"
    assert said["search against the best preset or control"].side == "not told apart"


def test_seeds_are_paired_by_number():
    mine = rows((1, 1))
    extra = [row("searched with mass, seed 2", "searched with mass", (0, 0))]
    extra += [row("searched without mass, seed 1", "searched without mass", (1, 1))]
    said = verdicts(Table([*mine, *extra]))["mass, in searches"]
    assert said.side == "ahead"
    assert said.words.count("±") == 1


def test_a_page_of_nothing_is_refused():
    with pytest.raises(SystemExit, match="--witness"):
        page([])
