"""Today's and earlier embedded models, by their numbers."""

import json

import pytest

from prunetune.calibration import load_calibration
from prunetune.errors import ConfigError, DataError
from prunetune.models import EMBEDDED, embedded
from prunetune.models.load import find_model
from prunetune.spec import StudySpec
from prunetune.study.prepare import with_data


@pytest.fixture
def next_edition(tmp_path, monkeypatch):
    """A package of the next model, in a folder that may be a checkout."""
    monkeypatch.setattr(embedded, "EDITION", embedded.EDITION + 1)
    monkeypatch.setattr(embedded, "PACKAGE", tmp_path / "prunetune")
    return tmp_path


def test_todays_model_and_sets_have_a_number_too():
    name = f"tiny-{embedded.EDITION}"
    assert find_model(name) == find_model("tiny") == (EMBEDDED, "llava_next")
    one, other = (load_calibration(source)[0] for source in (name, "tiny"))
    assert one.digest() == other.digest()


def test_an_earlier_model_comes_from_a_checkout(next_edition):
    for part in ("model", "data"):
        (next_edition / "training" / "tiny-1" / part).mkdir(parents=True)
    folder = embedded.folder_of("tiny-1", "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_next"}))
    assert find_model("tiny-1") == (folder, "llava_next")
    assert embedded.folder_of("tiny-1", "data").parent == folder.parent
    newest = f"tiny-{embedded.EDITION}"
    assert find_model(newest)[0] == find_model("tiny")[0] == EMBEDDED


def test_elsewhere_it_is_refused_in_one_line(next_edition):
    for refused, kind in ((find_model, ConfigError), (load_calibration, DataError)):
        with pytest.raises(kind, match=r"'tiny-1' is an earlier embedded .* run from a check") as e:
            refused("tiny-1")
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["tiny-0", "tiny-01", "tiny-", "tiny-1x", "tiny-3"])
def test_other_numbers_are_no_models(name):
    with pytest.raises(ConfigError, match="unknown model"):
        find_model(name)


@pytest.mark.parametrize(
    ("model", "data"), [("tiny", "tiny"), ("tiny-1", "tiny-1"), ("tiny-9", "tiny"), ("a/b", "tiny")]
)
def test_a_model_is_searched_on_its_own_sets(model, data):
    assert with_data(StudySpec(model=model)).data == data
    assert with_data(StudySpec(model=model, data="mine")).data == "mine"
