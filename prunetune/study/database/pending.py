"""What a running trial has suggested, reported and described, on its way to the database."""

import json
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from sqlalchemy import text

from prunetune.study.database.leases import Connection

_STATE = text("SELECT state FROM trials WHERE trial_id = :trial")
# A trial that is run again has its parameters and attributes already, and any is written in parts.
_PARAMETERS = text(
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
    "VALUES (:trial, :name, :value, :distribution) ON CONFLICT (trial_id, param_name) DO NOTHING"
)
_ATTRIBUTES = text(
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
    "VALUES (:trial, :name, :value) "
    "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
)
_REPORTS = text(
    "INSERT INTO trial_intermediate_values "
    "(trial_id, step, intermediate_value, intermediate_value_type) "
    "VALUES (:trial, :name, :value, 'FINITE') ON CONFLICT (trial_id, step) DO UPDATE SET "
    "intermediate_value = excluded.intermediate_value, intermediate_value_type = 'FINITE'"
)


@dataclass
class Pending:
    """What is not written yet of one trial.

    Attributes:
        parameters: Internal value and distribution by name.
        attributes: User attributes.
        reports: Reported values by step.
    """

    parameters: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)

    def write(self, connection: Connection, trial: int) -> None:
        """Write everything.

        Raises:
            UpdateFinishedTrialError: The trial has ended.
        """
        if connection.execute(_STATE, {"trial": trial}).scalar() != "RUNNING":
            raise UpdateFinishedTrialError(f"trial {trial} has ended")
        parameters = [
            {"name": name, "value": value, "distribution": distribution_to_json(distribution)}
            for name, (value, distribution) in self.parameters.items()
        ]
        attributes = [{"name": k, "value": json.dumps(v)} for k, v in self.attributes.items()]
        reports = [{"name": step, "value": value} for step, value in self.reports.items()]
        for statement, rows in (
            (_PARAMETERS, parameters),
            (_ATTRIBUTES, attributes),
            (_REPORTS, reports),
        ):
            if rows:
                connection.execute(statement, [{"trial": trial, **row} for row in rows])
