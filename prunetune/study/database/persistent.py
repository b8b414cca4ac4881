"""A study database that may be away for a while: every call tries again."""

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from prunetune.errors import StudyError

logger = logging.getLogger(__name__)

_RESTS_ON: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        RDBStorage,
        (
            "_create_new_trial",
            "_get_best_trial_id",
            "_get_prepared_new_trial",
            "_get_stale_trial_ids",
            "_get_trials",
            "_set_trial_param",
        ),
    ),
    (optuna.Study, ("_get_trials",)),
    (optuna.samplers.QMCSampler, ("_find_sample_id",)),
)
"""What Optuna keeps private and subclasses of this room and of ``trials`` override."""

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def _surviving(method: F) -> F:
    """Make a method of the storage try again while the database is away."""

    @functools.wraps(method)
    def call(self: "PersistentStorage", *args: Any, **kwargs: Any) -> Any:
        return self.persist(lambda: method(self, *args, **kwargs))

    return cast(F, call)


class PersistentStorage(RDBStorage):
    """Optuna's database storage; calls that a database restart breaks are made again.

    Attributes:
        patience: Seconds that a call goes on trying while the database is away.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.patience = 0.0
        super().__init__(*args, **kwargs)

    create_new_study = _surviving(RDBStorage.create_new_study)
    get_all_studies = _surviving(RDBStorage.get_all_studies)
    set_trial_system_attr = _surviving(RDBStorage.set_trial_system_attr)
    set_study_user_attr = _surviving(RDBStorage.set_study_user_attr)
    set_study_system_attr = _surviving(RDBStorage.set_study_system_attr)
    get_study_user_attrs = _surviving(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _surviving(RDBStorage.get_study_system_attrs)
    get_study_directions = _surviving(RDBStorage.get_study_directions)
    get_study_id_from_name = _surviving(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _surviving(RDBStorage.get_study_name_from_id)
    get_trial_id_from_study_id_trial_number = _surviving(
        RDBStorage.get_trial_id_from_study_id_trial_number
    )

    # Looked up when called: ``check_optuna`` shall be what misses them.
    def _create_new_trial(self, *args: Any, **kwargs: Any) -> Any:
        return self.persist(lambda: RDBStorage._create_new_trial(self, *args, **kwargs))

    # Optuna's Wilcoxon pruner asks for the best trial after every batch.
    def _get_best_trial_id(self, *args: Any, **kwargs: Any) -> int:
        return self.persist(lambda: RDBStorage._get_best_trial_id(self, *args, **kwargs))

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        return self.persist(lambda: RDBStorage._get_trials(self, *args, **kwargs))

    def persist(self, call: Callable[[], T]) -> T:
        """Call, and call again while the database is away, for ``patience`` seconds.

        Raises:
            StorageInternalError: It stayed away, or waiting cannot help.
        """
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            try:
                return call()
            except (StorageInternalError, SQLAlchemyError) as error:
                if not _passes(error) or time.monotonic() + pause > deadline:
                    if isinstance(error, SQLAlchemyError):
                        raise StorageInternalError(str(error)) from error
                    raise
                logger.info("the study database does not answer; trying again: %s", error)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


def check_optuna() -> None:
    """Refuse an Optuna that no longer has a private method which is overridden here.

    Under another name ours would never be called: counts of trials would stop being exact,
    samplers would see presets only, and workers draw the same points, in silence.

    Raises:
        StudyError: It does not.
    """
    for base, names in _RESTS_ON:
        for name in names:
            if not hasattr(base, name):
                raise StudyError(
                    f"optuna {optuna.__version__} has no {base.__name__}.{name}, which studies "
                    "rest on; install a release that has it: pip install 'optuna==5.0.*'"
                )


def _passes(error: BaseException) -> bool:
    """Tell whether waiting may help: the database restarts, or another process holds its lock."""
    cause = error.__cause__ if isinstance(error, OptunaError) else error
    if not isinstance(cause, OperationalError | InterfaceError | PendingRollbackError):
        return isinstance(cause, DBAPIError) and cause.connection_invalidated
    origin = type(getattr(cause, "orig", None))
    return origin.__module__ != "sqlite3" or "locked" in str(cause)
