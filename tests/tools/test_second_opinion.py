"""The page of witnesses says no more than its rows do."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from second_opinion_page import Table, judged, page, verdicts

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
    assert said["search against the best preset or control"].startswith(word)


def test_every_seed_has_to_agree():
    assert judged([(5, 1), (4, 1)], "x").startswith("ahead of x: +4.5")
    assert judged([(5, 1), (4, 6)], "x").startswith("not told apart")


def test_ways_win_the_kinds_that_they_lead_alone():
    won = verdicts(Table(rows((1, 1))))["kinds of questions won alone (no test)"]
    assert won == "saliency: color; set selection: none; even spread: count"
    tied = verdicts(Table(rows((1, 1), uniform=(0.6, 0.6))))
    assert "saliency: none" in tied["kinds of questions won alone (no test)"]


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


def test_a_page_of_nothing_is_refused():
    with pytest.raises(SystemExit, match="--witness"):
        page([])
