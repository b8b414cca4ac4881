"""Trials that other programs put into a study: shown as failed, so that nothing is made of them.

A notebook may open the same database with Optuna itself. What it adds has no config, and a value
that was not measured here; counted, it would be the best trial, and a search would end early.
"""

import copy
from collections.abc import Container, Sequence
from datetime import datetime, timedelta
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text

from prunetune.study.database.leases import OWNER, Connection

CONFIG = "config"
"""User attribute of every trial that a search measured; what it ran has an owner, too."""
FAILURE = "failure"
REASON = "another program added it; the search did not measure it"
ABANDONED_SECONDS = 300.0

_OWNERLESS = text(
    "SELECT t.trial_id FROM trials t WHERE t.study_id = :study AND t.state = 'RUNNING' "
    "AND t.datetime_start < :before "
    "AND NOT EXISTS (SELECT 1 FROM trial_user_attributes a "
    "WHERE a.trial_id = t.trial_id AND a.key = :owner) "
    "AND NOT EXISTS (SELECT 1 FROM trial_heartbeats h WHERE h.trial_id = t.trial_id)"
)


def is_foreign(trial: FrozenTrial) -> bool:
    """Tell whether a trial has a value although no search measured it."""
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return ended and not {CONFIG, OWNER} & trial.user_attrs.keys()


def shown(
    trials: Sequence[FrozenTrial], states: Container[TrialState] | None = None
) -> list[FrozenTrial]:
    """Return trials of some states, those of other programs as failed ones."""
    found = [as_failed(trial) if is_foreign(trial) else trial for trial in trials]
    return [trial for trial in found if states is None or trial.state in states]


def as_failed(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial of another program as it is shown; its number stays taken."""
    seen = copy.copy(trial)
    seen.state = TrialState.FAIL
    seen.values = None
    seen.user_attrs = {**trial.user_attrs, FAILURE: REASON}
    return seen


def ownerless(connection: Connection, study: int, now: datetime) -> list[int]:
    """Return the running trials that nobody answers for, of five minutes and more.

    Every trial of a search has an owner and a heartbeat from the moment it starts.

    Args:
        connection: To the database.
        study: Id of the study.
        now: In UTC, without a zone.
    """
    before = now - timedelta(seconds=ABANDONED_SECONDS)
    rows = connection.execute(_OWNERLESS, {"study": study, "owner": OWNER, "before": before})
    return [int(row[0]) for row in rows]


def was_queued(trial: Any) -> bool:
    """Tell whether a running trial is one that the search had queued."""
    return bool({"preset", "start", "given"} & trial.user_attrs.keys())
