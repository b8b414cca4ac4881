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
    """``log.jsonl``: one line for every trial that ended, those of a killed run included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = set(self._numbers())

    def _numbers(self) -> list[int]:
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(int(json.loads(line)["trial"]))
            except (ValueError, KeyError, TypeError):
                logger.warning("%s holds a broken line; it is left as it is", self.path)
        return found

    def __call__(self, study: Study) -> None:
        """Append the trials that ended and are not in the file yet."""
        ended = study.get_trials(deepcopy=False, states=_ENDED)
        new = [trial for trial in ended if trial.number not in self._seen]
        if not new:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{log_line(trial)}\n" for trial in new)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # The database is the record; a full disk must not end the search here.
            logger.warning("cannot write %s: %s", self.path, error.strerror)
            return
        self._seen.update(trial.number for trial in new)


def log_line(trial: FrozenTrial) -> str:
    """Return a finished trial as one line of JSON, for ``log.jsonl``."""
    names = ["preset", "schedule", "weights", "mean_retention", "samples_used", "gap", "kl"]
    names += ["top1_agreement", "accuracy", "repeats", "failure"]
    seconds = trial.duration.total_seconds() if trial.duration else None
    data = {"trial": trial.number, "state": trial.state.name, "seconds": seconds}
    values = trial.values if trial.state is TrialState.COMPLETE else [None]
    data |= dict(zip(("value", "cost"), values))
    data |= {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
    return json.dumps(data)
