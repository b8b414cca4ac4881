"""``log.jsonl``: what trials were and came to, for people and their tools."""

import json
import logging
import os
from pathlib import Path
from typing import IO

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from prunetune.files import check_plain
from prunetune.study.trials.best import FINISHED

logger = logging.getLogger(__name__)

_ENDED = (*FINISHED, TrialState.FAIL)


class TrialLog:
    """``log.jsonl``: one line for every trial that ended, those of a killed run included.

    A folder may come to hold several studies, each with a trial 0: how long a trial took, to the
    microsecond, tells them apart.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[tuple[int, float | None]] = set()
        self._read = 0

    def __call__(self, study: Study) -> None:
        """Append the trials that ended and are not in the file yet, whoever wrote them."""
        ended = study.get_trials(deepcopy=False, states=_ENDED)
        if all(_key(trial) in self._seen for trial in ended):
            return
        try:
            with self.path.open("a+b") as file:
                # Closing unlocks. Another command may write into the same folder.
                _lock(file)
                check_plain(file)
                self._take_in(file)
                new = [trial for trial in ended if _key(trial) not in self._seen]
                # A killed run may have left half a line.
                if (
                    file.seek(0, os.SEEK_END)
                    and file.seek(-1, os.SEEK_END)
                    and file.read(1) != b"\n"
                ):
                    file.write(b"\n")
                file.writelines(f"{log_line(trial)}\n".encode() for trial in new)
                file.flush()
                os.fsync(file.fileno())
                self._read = file.tell()
        except OSError as error:
            # The database is the record; a full disk must not end the search here.
            logger.warning("cannot write %s: %s", self.path, error.strerror)
            return
        self._seen.update(_key(trial) for trial in new)

    def _take_in(self, file: IO[bytes]) -> None:
        """Read what has come to the file since it was last read or written here."""
        if file.seek(0, os.SEEK_END) < self._read:
            self._read = 0
            self._seen.clear()
        file.seek(self._read)
        for line in file.read().splitlines():
            try:
                data = json.loads(line)
                self._seen.add((int(data["trial"]), data.get("seconds")))
            except (ValueError, KeyError, TypeError, RecursionError):
                logger.warning("%s holds a broken line; it is left as it is", self.path)


def _lock(file: IO[bytes]) -> None:
    """Wait until no other process has the file locked; some file systems cannot lock."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        logger.debug("%s cannot be locked: %s", file.name, error)


def _key(trial: FrozenTrial) -> tuple[int, float | None]:
    return trial.number, _seconds(trial)


def _seconds(trial: FrozenTrial) -> float | None:
    return trial.duration.total_seconds() if trial.duration else None


def log_line(trial: FrozenTrial) -> str:
    """Return a finished trial as one line of JSON, for ``log.jsonl``."""
    names = ["preset", "pixels", "tokens_left", "schedule", "weights", "mean_retention"]
    names += ["samples_used", "gap", "kl"]
    names += ["top1_agreement", "accuracy", "repeats", "failure"]
    data = {"trial": trial.number, "state": trial.state.name, "seconds": _seconds(trial)}
    values = trial.values if trial.state is TrialState.COMPLETE else [None]
    data |= dict(zip(("value", "cost"), values))
    data |= {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
    return json.dumps(data)
