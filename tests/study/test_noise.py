"""A choice among the best trials that knows its own noise, on planted samples."""

import logging
import random

import pytest
from fakes import Fake, search

from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.scorers import SCORERS
from prunetune.selectors import SELECTORS
from prunetune.study.outcome.noise import effort, paired, settle

IMAGES = [f"image{i // 4}" for i in range(160)]
COVERAGE, LAST = (SCORERS.get(name)() for name in ("coverage", "last_query"))


def config(*layers, scorers=(COVERAGE,), **fields):
    stages = tuple(
        Stage(layer=layer, retention=0.5 - 0.1 * k, scorers=() if k else scorers, **fields)
        for k, layer in enumerate(layers)
    )
    return PruningConfig(model=ModelRef(model_type="llava", num_layers=16), stages=stages)


SIMPLE, LATER, BOTH = config(1), config(1, 8), config(1, scorers=(COVERAGE, LAST))


def planted(shift, spread, seed=0, start=0.1):
    """Return values of two trials: the second is ``shift`` worse, give or take ``spread``."""
    draw = random.Random(seed)
    best = [start + draw.uniform(0.0, 0.05) for _ in IMAGES]
    return best, [value + shift + draw.uniform(-spread, spread) for value in best]


def test_the_error_of_a_difference_is_over_pictures():
    one, other = [1.0, 1.0, 0.0, 0.0], [0.0] * 4
    apart = paired(one, other, ["a", "b", "c", "d"])
    together = paired(one, other, ["a", "a", "b", "b"])
    assert apart == (0.5, pytest.approx((4 / 3 * 4 * 0.25) ** 0.5 / 4))
    assert together == (0.5, pytest.approx((2 * 2 * 1.0) ** 0.5 / 4))
    assert paired(one, other, ["a"] * 4) == (0.5, 0.0)


def test_within_noise_the_simpler_wins_and_beyond_it_the_better():
    best, other = planted(0.0002, 0.1)
    more, error = paired(other, best, IMAGES)
    assert abs(more) < error
    known = {3: LATER, 7: SIMPLE}
    assert settle({3: best, 7: other}, known, IMAGES)[0] == 7
    assert settle({3: other, 7: best}, known, IMAGES)[0] == 7
    # The twin: a difference that the samples can tell is not given away.
    clearly = planted(0.02, 0.02)
    assert settle({3: clearly[0], 7: clearly[1]}, known, IMAGES) == (3, [3])


def test_of_equally_simple_ones_the_better_then_the_earlier():
    best, other = planted(0.0002, 0.1, seed=1)
    lower, higher = sorted((best, other), key=sum)
    assert settle({1: higher, 2: lower}, {1: SIMPLE, 2: config(2)}, IMAGES)[0] == 2
    assert settle({5: best, 4: best}, {5: SIMPLE, 4: config(2)}, IMAGES)[0] == 4


@pytest.mark.parametrize(
    ("simple", "other"),
    [
        (SIMPLE, LATER),
        (SIMPLE, BOTH),
        (SIMPLE, config(1, scorers=(LAST,))),
        (SIMPLE, config(1, mass=1.0)),
        (config(1, scorers=(), selector=SELECTORS.get("cover")()), SIMPLE),
        (BOTH, LATER),
    ],
)
def test_what_is_simpler(simple, other):
    assert effort(simple) < effort(other)


def test_two_pictures_that_disagree_tell_nothing_and_one_tells_nothing_of_noise():
    values = {0: [0.1] * 4, 1: [0.0, 0.0, 0.3, 0.3]}
    known = {0: LATER, 1: SIMPLE}
    assert settle(values, known, ["a", "a", "b", "b"])[0] == 1
    assert settle(values, known, ["a"] * 4)[0] == 0


def test_a_search_says_that_it_took_the_simpler_one(tmp_path, caplog):
    class Even(Fake):
        """Without scorers it is a little worse, where every second picture says the contrary."""

        def badness(self, config):
            plain = not config.stages[0].scorers
            low, high = (0.52, 1.5) if plain else (1.5, 0.5)
            self.noise = [high if i // 4 % 2 else low for i in range(48)]
            return 0.1

    caplog.set_level(logging.INFO, logger="prunetune")
    first, again = (
        search(tmp_path / name, Even(), trials=12, rescored=12) for name in ("one", "two")
    )
    assert first.best.stages == again.best.stages
    assert first.best.stages[0].scorers == ()
    assert "cannot tell them apart" in caplog.text
