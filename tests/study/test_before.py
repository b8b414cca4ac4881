"""Studies of releases that had no selectors go on with the command that made them."""

import pytest
from fakes import Fake, search, spec, trials_of

from prunetune.errors import StudyError
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.database.connect import open_storage
from prunetune.study.database.urls import storage_url
from prunetune.study.prepare import _as_stored, _stored
from prunetune.study.resumed import as_stored, difference, refuse_other

NEW = ("selectors", "mass", "exit", "per_crop", "parts", "ranges", "version")


def without_new(data):
    return {**data, "space": {k: v for k, v in data["space"].items() if k not in NEW}}


@pytest.fixture
def before(tmp_path):
    """A study as such a release left it: in the database and in its file."""
    old = StudySpec.parse(without_new(spec(trials=4).model_dump(mode="json")))
    search(tmp_path, Fake(), **{n: getattr(old, n) for n in ("trials", "space")})
    import optuna

    storage = open_storage(storage_url(tmp_path, None))
    study = optuna.load_study(study_name=None, storage=storage)
    study.set_user_attr("spec", without_new(study.user_attrs["spec"]))
    StudySpec.parse(study.user_attrs["spec"]).save(tmp_path / "spec.toml")
    return tmp_path, storage, study.study_name


def test_the_same_command_goes_on(before):
    folder, storage, name = before
    refuse_other(folder, spec(trials=10))
    now = _as_stored(spec(trials=10), _stored(storage, name))
    assert now.space.selectors == ("top",)
    search(folder, Fake(), trials=10, space=now.space)
    first, last = trials_of(folder)[3], trials_of(folder)[-1]
    assert len(trials_of(folder)) == 10
    assert set(first.params) == set(last.params)
    assert "selector" not in first.params


def test_what_is_asked_for_by_name_is_refused_and_other_studies_are_left_alone(before):
    folder, storage, name = before
    asked = spec(trials=10, space=SpaceSpec(selectors=("top", "cover")))
    with pytest.raises(StudyError, match=r"space\.selectors"):
        refuse_other(folder, asked)
    assert _as_stored(asked, _stored(storage, name)).space.selectors == ("top", "cover")
    assert _as_stored(spec(), _stored(storage, "another")) == spec()
    assert difference(spec(), as_stored(spec(), spec())) == []
