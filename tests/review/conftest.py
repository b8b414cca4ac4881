"""A finished search for all tests of this room."""

import pytest
from fakes import spec
from made_studies import Asked

from prunetune.study.find import find_study
from prunetune.study.study import run_search


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    """A finished search without a model, whose data is nasty."""
    out = tmp_path_factory.mktemp("searched")
    run_search(spec(trials=24, presets=["uniform"]), Asked(), Asked(seed=1), out=out)
    return find_study(str(out))
