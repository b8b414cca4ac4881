"""What servers are tested with."""

import pytest

from prunetune.config import PruningConfig
from prunetune.models import load_model
from prunetune.presets import load_preset


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


@pytest.fixture(scope="module")
def config():
    found, _ = load_preset("topv", model_type="llava_next", num_layers=16, keep=0.2)
    return PruningConfig.parse(found.model_dump() | {"model": found.model.model_dump()})
