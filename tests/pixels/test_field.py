"""The config's field: what is allowed, and that nothing changes where it is not set."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune import PruningConfig
from prunetune.errors import ConfigError

STAGES = [{"layer": 1, "retention": 0.5, "scorers": [{"name": "coverage"}]}]
LEVELS = st.one_of(
    st.fixed_dictionaries({"share": st.floats(0.0, 1.0, exclude_min=True)}),
    st.fixed_dictionaries({"max_pixels": st.integers(1, 1 << 40)}),
)
WRONG = st.one_of(
    st.fixed_dictionaries({"share": st.one_of(st.floats(), st.text(), st.booleans(), st.none())}),
    st.fixed_dictionaries({"max_pixels": st.one_of(st.integers(), st.floats(), st.text())}),
    st.dictionaries(st.text(max_size=9), st.integers(), max_size=3),
    st.one_of(st.integers(), st.text(), st.lists(st.integers()), st.booleans()),
)


def parse(pixels, stages=STAGES, version=2):
    data = {"format": "prunetune.config", "version": version, "stages": stages}
    ref = {"model_type": "qwen2_5_vl", "num_layers": 4}
    return PruningConfig.parse({**data, "model": ref, "pixels": pixels})


@given(LEVELS)
def test_a_level_comes_back_as_it_was(pixels):
    config = parse(pixels)
    again = PruningConfig.parse(json.loads(config.to_json()))
    assert again == config
    assert again.to_json() == config.to_json()
    assert json.loads(config.to_json())["pixels"] == pixels
    assert config.digest() != parse(None).digest()


@settings(max_examples=50)
@given(WRONG)
def test_anything_else_is_one_line(pixels):
    plain = isinstance(pixels, dict) and len(pixels) == 1
    key, value = next(iter(pixels.items())) if plain else ("", None)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    share = key == "share" and number and 0 < value <= 1
    if share or (key == "max_pixels" and number and isinstance(value, int) and value >= 1):
        assert parse(pixels).pixels is not None
    else:
        with pytest.raises(ConfigError, match=r"pixels[^\n]*$"):
            parse(pixels)


def test_unset_is_not_written():
    config = parse(None)
    assert "pixels" not in config.to_json()
    assert PruningConfig(model=config.model, stages=config.stages).version == 1
    assert PruningConfig(model=config.model, stages=(), pixels={"share": 0.5}).version == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pixels": None, "stages": []}, "stages: received none"),
        ({"pixels": {"share": 1.0}, "stages": []}, "stages: received none"),
        ({"pixels": {"share": 0.5}, "version": 1}, "pixels are of version 2"),
        ({"pixels": {"name": "adaptive"}}, "does not know"),
        ({"pixels": {"share": 0}}, "pixels.share: received 0, allowed"),
    ],
)
def test_what_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        parse(**given)
