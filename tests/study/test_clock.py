"""A run keeps its time: trials make room for the table, and what is no use is not measured."""

import subprocess
import sys

import pytest
from fakes import Fake, search, spec, trials_of
from optuna.trial import TrialState

from prunetune.errors import StudyError
from prunetune.study.clock import Clock
from prunetune.study.outcome.selection import choose, shortlist
from prunetune.study.outcome.summary import table_rows
from prunetune.study.study import run_trials


class Timed:
    """Two splits of which a sample takes a second, and the clock that shows it."""

    def __init__(self, seconds, kept=0.0, **held):
        self.calibration, self.held_out = Fake(), Fake(seed=1, **held)
        self.clock = Clock(seconds, begun=0.0, now=self.now)
        self.clock.keep_back(kept)
        self.seconds = seconds

    def now(self):
        return float(self.calibration.measured + self.held_out.measured)

    def run(self, out, **fields):
        wanted = {"trials": 10_000, "timeout": self.seconds, "clock": self.clock, **fields}
        return search(out, self.calibration, self.held_out, **wanted)


def test_trials_make_room_for_the_table(tmp_path):
    timed = Timed(2000.0, kept=900.0, count=96)
    result = timed.run(tmp_path)
    assert result.stopped == "the timeout of 2000 s"
    assert timed.now() <= 2000 + 96
    known = [row for row in result.baselines if row.scores is not None]
    assert len(known) >= 10
    # All that is compared is compared on the same samples, as many as there was time for.
    assert 16 <= result.held_out.samples < 96
    assert all(row.scores.samples <= result.held_out.samples for row in known)
    assert not any(fake.open for fake in (timed.calibration, timed.held_out))
    # The trial that had to make room is run by whoever goes on.
    assert {trial.state.name for trial in trials_of(tmp_path)} <= {"COMPLETE", "WAITING"}
    more = Timed(10_000.0)
    assert more.run(tmp_path, trials=result.trials["complete"] + 3).stopped is None
    # The twin: with time for all, all samples are compared.
    assert search(tmp_path / "all", held_out=Fake(seed=1, count=96)).held_out.samples == 96


def test_without_time_for_a_table_it_says_so(tmp_path):
    result = Timed(300.0).run(tmp_path)
    assert result.verdict.startswith("Not compared: the timeout of 300 s left no time")
    assert all(row.scores is None for row in result.baselines)
    assert any("the time was up" in row.note for row in result.baselines)
    assert (tmp_path / "config.json").exists()
    with pytest.raises(StudyError, match="no finished trial"):
        Timed(20.0).run(tmp_path / "none")


@pytest.mark.parametrize("fields", [{"keep": 0.05, "up_to": 0.5}, {"promise": "drop"}])
def test_a_front_ends_in_time(tmp_path, fields):
    if "promise" in fields:
        fields = {"promise": {"loss": "gap", "most": 0.9}}
    timed = Timed(3000.0, kept=1500.0, count=96)
    result = timed.run(tmp_path, objective="pareto", **fields)
    assert timed.now() <= 3000 * 1.05 + 96 + 48
    assert result.points
    assert result.decision is None or result.decision.trial is not None


def test_a_rival_is_left_where_it_can_change_nothing(tmp_path):
    held, whole = Fake(seed=1, count=240), Fake(seed=1, count=240)
    found = search(tmp_path / "a", held_out=held, trials=20)
    left = [row for row in found.baselines if row.stopped]
    assert left
    assert held.measured < 0.8 * 240 * (1 + sum(row.scores is not None for row in found.baselines))
    for row in left:
        assert f"stopped after {row.scores.samples} of 240 samples" in row.note
        # On all samples it is neither the best one nor better than the tuned config.
        bad = [result for batch in whole.evaluate(_config(held, row)) for _, result in batch]
        gap = sum(result.gap for result in bad) / 240
        others = [r.scores for r in found.baselines if r.scores and not r.stopped]
        assert gap > min(other.gap for other in others)
        assert gap > found.held_out.gap
        assert row.beaten
        assert row.name in found.judged.baselines["better"]
        assert found.judged.best_baseline.name != row.name
    shown = table_rows(found)
    assert any("stopped after" in cells[-1] for cells in shown)
    # The twin: as good as the tuned config, none is left.
    same = search(tmp_path / "b", held_out=Alike(seed=1, count=240), trials=3)
    assert not any(row.stopped for row in same.baselines)


def _config(held, row):
    """Return the config that a row's figures are of: the one measured on as many samples."""
    found = [c for c in held.configs if abs(held.badness(c) - _badness(held, row)) < 1e-9]
    return found[0]


def _badness(held, row):
    return row.scores.gap * row.scores.samples / sum(held.noise[: row.scores.samples])


class Alike(Fake):
    def badness(self, config):
        return 0.05


def test_other_workers_end_with_the_one_that_started_them(tmp_path):
    from types import SimpleNamespace

    from prunetune.study.workers.crew import Cache, Workers, crew

    prepared = SimpleNamespace(spec=spec(), out=tmp_path)
    clock = Clock(100.0, begun=7.0, kept=20.0)
    order = crew(prepared, {}, 8, Cache(), Workers(3), clock=clock)._order
    assert Clock(**order["clock"]) == clock
    assert "clock" not in crew(prepared, {}, 8, Cache(), Workers(3))._order


ALARM = """
import signal
from prunetune.study.clock import Clock, OutOfTime

with Clock(1e6).alarmed("it was loaded"):
    pass
assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
clock = Clock(0.05)
try:
    with clock.alarmed("it was loaded"):
        while clock.now() < clock.end + 120:
            pass
except OutOfTime as error:
    print(error)
late = Clock(0.05)
try:
    with late.alarmed("it was loaded", 1.0):
        while late.now() < late.end + 120:
            pass
except OutOfTime as error:
    print(error)
"""


def test_what_has_no_steps_ends_in_time_too():
    # In a process of its own: this one's alarm is the test runner's.
    done = subprocess.run([sys.executable, "-c", ALARM], capture_output=True, text=True, check=True)
    said, late = done.stdout.splitlines()
    assert said == "the timeout of 0.05 s has come while it was loaded"
    assert late.startswith("--timeout: received 0.05, allowed here more than 2: the time was up")


def test_stopped_trials_are_not_measured_to_their_end_where_the_table_would_lose_its_time(tmp_path):
    """Each of five would take up to 128 seconds of the 400 that are left."""
    study = run_trials(
        # Points near the best are hardly ever stopped.
        spec(trials=60, trial_pruner="wilcoxon", rescored=5, refine=0),
        Fake(count=128),
        out=tmp_path,
    )
    short = shortlist(study, 5)
    assert any(trial.state is TrialState.PRUNED for trial in short)

    def spent(left):
        fake = Fake(count=128)
        clock = Clock(left, begun=0.0, pace=1.0, now=lambda: float(fake.measured))
        found = choose(study, spec(trials=60), fake, clock)
        assert len(found.results) == 128
        return fake.measured, found.trial

    measured, trial = spent(400.0)
    assert measured == 128
    assert study.trials[trial].state is TrialState.COMPLETE
    # The twins: with time, and without an end, all of them are.
    assert spent(100_000.0) == spent(None)
    assert spent(None)[0] > 2 * 128
