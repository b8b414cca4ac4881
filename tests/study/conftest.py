"""A database for tests of what lies in it."""

import optuna
import pytest

from prunetune.study.database.connect import open_storage
from prunetune.study.database.storage import quiet
from prunetune.study.database.urls import storage_url


@pytest.fixture
def shared(tmp_path):
    """A study with room for three trials, and its storage."""
    storage = open_storage(storage_url(tmp_path, None))
    storage.room = 3
    with quiet():
        yield optuna.create_study(storage=storage, study_name="shared"), storage
