"""Ctrl-C and SIGTERM that cannot be lost."""

import contextlib
import signal
import sys

import pytest
from fakes import Fake, search, trials_of
from optuna.trial import TrialState

from prunetune import interrupts


def swallowed(at):
    """Return what raises SIGINT at a call, where its exception goes nowhere."""

    def fail(call):
        if call == at:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    return fail


# In a trial, in the last one, in the winner's proof.
@pytest.mark.parametrize("at", [2, 6, 7])
def test_an_interrupt_whose_exception_is_swallowed_ends_the_search_all_the_same(tmp_path, at):
    with pytest.raises(KeyboardInterrupt), interrupts.heeded(signal.SIGINT):
        search(tmp_path, Fake(fail=swallowed(at)), trials=6)
    states = [t.state for t in trials_of(tmp_path)]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) == min(at - 1, 6)
    interrupts.check()  # The mark is gone with the block:
    assert search(tmp_path, trials=6).trials["complete"] == 6


def test_an_interrupt_is_heeded_in_the_held_out_table(tmp_path):
    with pytest.raises(KeyboardInterrupt), interrupts.heeded(signal.SIGINT):
        search(tmp_path, held_out=Fake(fail=swallowed(3)), trials=2)


def test_an_interrupt_that_became_another_exception_is_an_interrupt():
    @interrupts.heeded(signal.SIGINT)
    def convert():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("made of it by somebody") from error

    with pytest.raises(KeyboardInterrupt):
        convert()


def test_an_interrupt_that_disappears_in_a_finaliser_prints_no_traceback(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))

    class Dying:
        def __init__(self, last):
            self.last = last

        def __del__(self):
            self.last()

    with pytest.raises(KeyboardInterrupt), interrupts.heeded(signal.SIGINT):
        Dying(lambda: signal.raise_signal(signal.SIGINT))
    assert told == []
    # The twins: what else is lost is told, and so is an interrupt that nobody heeds.
    with interrupts.heeded(signal.SIGINT):
        Dying(lambda: 1 / 0)
    Dying(lambda: signal.raise_signal(signal.SIGINT))
    assert told == [ZeroDivisionError, KeyboardInterrupt]


def test_the_twin_without_a_mark_the_search_goes_on_to_its_end(tmp_path):
    result = search(tmp_path, Fake(fail=swallowed(2)), trials=6)
    assert result.trials["complete"] == 6


def test_handlers_are_left_as_they_were(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with interrupts.heeded(signal.SIGINT):
        ours = signal.getsignal(signal.SIGINT)
        with interrupts.heeded(signal.SIGINT):  # its own, so it stays
            assert signal.getsignal(signal.SIGINT) is ours
    assert signal.getsignal(signal.SIGINT) is before is not ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.heeded(signal.SIGINT):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with interrupts.heeded(signal.SIGINT, ignored_too=True):
            assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)
