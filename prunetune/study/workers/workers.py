"""More workers on this machine: processes that join the study and end with whoever started them.

A worker is told what to do on its standard input: an order in one line of JSON (a storage URL in
the command line would show its password to everybody), later ``finish``. The end of that input
means that whoever started it has gone, killed or not, and ends it too.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prunetune.secrets import redact
from prunetune.study.clock import Clock

logger = logging.getLogger(__name__)

READY = "ready"
FINISH = "finish"
_FINISH_SECONDS, STOP_SECONDS = 300.0, 15.0


class _Process:
    """A worker process; what it says on stderr is logged, why it died too."""

    def __init__(self, number: int, order: Mapping[str, Any], threads: int) -> None:
        self.number = number
        self.ready = False
        self.expected = False
        self._said = ""
        package = str(Path(__file__).parents[3])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prunetune.study.workers.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Ctrl-C reaches the whole foreground group: here only the parent decides what it means.
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "OMP_NUM_THREADS": str(threads),
            },
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.say(json.dumps({**order, "worker": number, "threads": threads}))

    def say(self, line: str) -> None:
        """Send a line; a worker that has died is reported elsewhere."""
        try:
            self._pipe.write(f"{line}\n")
            self._pipe.flush()
        except (OSError, ValueError):
            return

    @property
    def _pipe(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            line = redact(line.strip())
            if line == READY:
                self.ready = True
            elif line.startswith("WARNING: "):
                logger.warning("worker %d: %s", self.number, line.removeprefix("WARNING: "))
            elif line:
                self._said = line
        status = self.process.wait()
        if status and not self.expected:
            logger.warning(
                "worker %d ended early: %s; the others go on", self.number, self._why(status)
            )

    def _why(self, status: int) -> str:
        if status == -signal.SIGKILL:
            return "it was killed (SIGKILL), perhaps because memory ran out"
        return self._said[:300] or f"exit status {status}"

    def stop(self) -> None:
        """Make it drop its trial and end."""
        self.expected = True
        try:
            self._pipe.close()
        except OSError:
            return

    def wait(self, deadline: float) -> None:
        """Wait for its end; at the deadline end it."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it now; its trial is run again by whoever sees that it has died."""
        self.expected = True
        self.process.kill()
        self.process.wait()


class Crew:
    """The workers beside the one in this process; a context manager.

    Args:
        count: How many.
        order: What ``prunetune.study.workers.process.join`` needs, as plain data.
        threads: CPU threads of each.
        clock: Of the run: trials that are not ended when it needs the time are dropped.
    """

    def __init__(
        self, count: int, order: Mapping[str, Any], threads: int, clock: Clock | None = None
    ) -> None:
        self._count, self._order, self._threads = count, order, threads
        self._clock = clock or Clock()
        self.processes: list[_Process] = []

    def __enter__(self) -> "Crew":
        try:
            for number in range(1, self._count + 1):
                self.processes.append(_Process(number, self._order, self._threads))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._end()

    def _finish(self) -> None:
        """Let running trials end: they count."""
        for process in self.processes:
            process.say(FINISH)
            if not process.ready:
                process.stop()
        # A worker drops its own trial when time is up: no more than a batch is waited for.
        seconds = max(1.0, min(_FINISH_SECONDS, self._clock.trials_left + 0.2 * self._clock.kept))
        deadline = time.monotonic() + seconds
        for process in self.processes:
            if process.ready:
                process.wait(deadline)

    def _end(self) -> None:
        for process in self.processes:
            process.stop()
        deadline = time.monotonic() + STOP_SECONDS
        try:
            for process in self.processes:
                process.wait(deadline)
        except BaseException:
            for process in self.processes:
                process.kill()
            raise
