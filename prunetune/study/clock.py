"""How much time a run has: when its trials end, and when nothing more is measured."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prunetune.errors import StudyError

_SHARE = 0.5
"""Of the time left when trials begin: what is kept back for the table at most."""
_GRACE = 0.05
"""Of the whole time: what has begun may end in it."""


class OutOfTime(StudyError):
    """The run's time is up."""


@dataclass
class Clock:
    """A run's time, from its beginning to its end.

    Attributes:
        seconds: What the run may take; None for as long as it takes.
        begun: ``time.monotonic()`` when it began; the same for every process of the machine.
        kept: Seconds kept back for what comes after the trials.
        pace: Seconds that a trial takes a sample, as far as it is known.
        unpruned: Seconds that the unpruned run of the held-out split took.
        page: Seconds that the report takes, after all that is measured.
        most: What may be kept back, of what was left when trials began.
        now: Tells the time.
    """

    seconds: float | None = None
    begun: float = field(default_factory=time.monotonic)
    kept: float = 0.0
    pace: float | None = None
    unpruned: float = 0.0
    page: float = 0.0
    most: float | None = None
    now: Callable[[], float] = time.monotonic

    @property
    def end(self) -> float:
        """When the run ends, on its clock."""
        return math.inf if self.seconds is None else self.begun + self.seconds

    @property
    def left(self) -> float:
        """Seconds until nothing more is measured; infinite without an end."""
        return self.end - self.now() - self.page

    @property
    def up(self) -> bool:
        """Whether nothing more is to be measured."""
        return self.left <= 0

    @property
    def over(self) -> bool:
        """Whether the end came a while ago."""
        return self.seconds is not None and self.end - self.now() <= -_GRACE * self.seconds

    def part(self, share: float) -> "Clock":
        """Return a clock of a share of what is left."""
        if self.seconds is None:
            return self
        left = max(0.0, share * self.left)
        return Clock(left, self.now(), pace=self.pace, unpruned=self.unpruned, now=self.now)

    def keep_back(self, wanted: float) -> None:
        """Keep time back for what follows the trials, at most half of what is left at first."""
        if self.seconds is not None:
            self.most = _SHARE * self.left if self.most is None else self.most
            self.kept = max(0.0, min(wanted, self.most))

    @property
    def trials_left(self) -> float:
        """Seconds until trials have to end."""
        return self.left - self.kept

    def check_trial(self) -> None:
        """Raise where a running trial has to make room for what follows.

        Raises:
            OutOfTime: It has.
        """
        if self.trials_left <= 0:
            raise OutOfTime(f"the timeout of {self.seconds:g} s has come")

    def check(self) -> None:
        """Raise where not even what has begun may go on.

        Raises:
            OutOfTime: The end came a while ago.
        """
        if self.over:
            raise OutOfTime(f"the timeout of {self.seconds:g} s has come")

    @contextmanager
    def alarmed(self, doing: str, late: float = 0.0) -> Iterator[None]:
        """End the block when the end comes, wherever it is, in the main thread.

        For what has no steps of its own at which to look at the clock. What the interpreter does
        not get back from a call within is waited for.

        Args:
            doing: What the time is up for.
            late: Seconds that the end may come late by, to find out how long would be enough.

        Raises:
            OutOfTime: It came.
        """
        main = threading.current_thread() is threading.main_thread()
        if self.seconds is None or not main or signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:
            yield
            return

        def ring(number: int, frame: object) -> None:
            if late:
                raise OutOfTime(
                    f"--timeout: received {self.seconds:g}, allowed here more than "
                    f"{math.ceil(self.now() - self.begun)}: the time was up while {doing}; give "
                    "more time: without a timeout the plan says how much"
                )
            raise OutOfTime(f"the timeout of {self.seconds:g} s has come while {doing}")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.end - self.now() + late))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def note(self, samples: int, seconds: float) -> None:
        """Learn from a trial how long a sample takes; the last few count most."""
        if samples > 0:
            new = seconds / samples
            self.pace = new if self.pace is None else 0.7 * self.pace + 0.3 * new
