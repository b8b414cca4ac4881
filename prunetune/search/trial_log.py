"""``log.jsonl``: what trials were and came to, for people and their tools."""

import json
import logging
import os
from pathlib import Path

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from prunetune.search.front import FINISHED

logger = logging.getLogger(__name__)

_ENDED = (*FINISHED, TrialState.FAIL)


class TrialLog:
    """``log.jsonl``: one line for every trial that ended, those of a killed run included.

    A folder may come to hold several studies, each with a trial 0: how long a trial took, to the
    microsecond, tells them apart.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = set(self._trials())

    def _trials(self) -> list[tuple[int, float | None]]:
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                data = json.loads(line)
                found.append((int(data["trial"]), data.get("seconds")))
            except (ValueError, KeyError, TypeError):
                logger.warning("%s holds a broken line; it is left as it is", self.path)
        return found

    def __call__(self, study: Study) -> None:
        """Append the trials that ended and are not in the file yet."""
        ended = study.get_trials(deepcopy=False, states=_ENDED)
        new = [trial for trial in ended if (trial.number, _seconds(trial)) not in self._seen]
        if not new:
            return
        try:
            with self.path.open("a+b") as file:
                # A killed run may have left half a line.
                if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                    file.write(b"\n")
                file.writelines(f"{log_line(trial)}\n".encode() for trial in new)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # The database is the record; a full disk must not end the search here.
            logger.warning("cannot write %s: %s", self.path, error.strerror)
            return
        self._seen.update((trial.number, _seconds(trial)) for trial in new)


def _seconds(trial: FrozenTrial) -> float | None:
    return trial.duration.total_seconds() if trial.duration else None


def log_line(trial: FrozenTrial) -> str:
    """Return a finished trial as one line of JSON, for ``log.jsonl``."""
    names = ["preset", "schedule", "weights", "mean_retention", "samples_used", "gap", "kl"]
    names += ["top1_agreement", "accuracy", "repeats", "failure"]
    data = {"trial": trial.number, "state": trial.state.name, "seconds": _seconds(trial)}
    values = trial.values if trial.state is TrialState.COMPLETE else [None]
    data |= dict(zip(("value", "cost"), values))
    data |= {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
    return json.dumps(data)
