"""What configs of a study save on a device: kept in the study and in their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Study
from pydantic import ValidationError

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.provenance import Saving

KEY = "savings"


def keep_saving(study: Study, trial: int, saving: Saving, files: Sequence[Path]) -> None:
    """Store what a trial's config saves in its study, and in its config files.

    Args:
        study: Of the trial.
        trial: Its number.
        saving: What was measured; it takes the place of what was measured before.
        files: Configs that may be of this trial; others, and missing ones, are left alone.

    Raises:
        ConfigError: A config cannot be written.
    """
    known = dict(study.user_attrs.get(KEY) or {})
    study.set_user_attr(KEY, {**known, str(trial): saving.model_dump(mode="json")})
    for file in files:
        try:
            config = PruningConfig.load(file)
        except ConfigError:
            continue
        if (config.provenance.study, config.provenance.trial) == (study.study_name, trial):
            with_saving(config, saving).save(file)


def saving_of(attrs: Mapping[str, Any], trial: int | None) -> Saving | None:
    """Return what a trial's config saves; None where it was not measured."""
    known = attrs.get(KEY)
    try:
        return Saving.model_validate((known or {}).get(str(trial)))
    except (ValidationError, AttributeError):
        return None


def with_saving(config: PruningConfig, saving: Saving | None) -> PruningConfig:
    """Return a config whose provenance says what it saves; the same where nothing is known."""
    if saving is None:
        return config
    made = config.provenance.model_copy(update={"saving": saving})
    return config.model_copy(update={"provenance": made})
