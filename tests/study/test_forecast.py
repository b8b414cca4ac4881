"""What a run will do, from one timed sample; what fits into its time."""

from types import SimpleNamespace

import pytest

from prunetune.calibration import CalibrationSet, Sample, load_calibration
from prunetune.errors import ConfigError
from prunetune.models import load_model
from prunetune.spec import StudySpec
from prunetune.study import forecast as module
from prunetune.study.clock import Clock
from prunetune.study.forecast import Pace, first_pictures, forecast


def prepared(calibration=100, held_out=480, **fields):
    return SimpleNamespace(
        spec=StudySpec(**fields), calibration=range(calibration), held_out=range(held_out)
    )


@pytest.fixture
def pace(monkeypatch):
    monkeypatch.setattr(module, "timed", lambda prepared: Pace(1.0, 1.0, 0.5))


def clock(seconds):
    return Clock(seconds, begun=0.0, now=lambda: 0.0)


def test_time_decides_how_much_is_held_out(pace):
    free = forecast(prepared(), clock(None))
    assert free.held_out == 480
    assert "at most" in free.words()
    assert "100 calibration and 480 held-out samples, about" in free.words()
    short = forecast(prepared(), clock(1000.0))
    assert short.held_out == 350
    assert "350 held-out samples (of 480; no time for more)" in short.words()
    assert "ends after 17 min" in short.words()
    assert short.at(2.0).table > short.table
    with pytest.raises(ConfigError, match=r"--timeout: received 60, allowed here about \d+"):
        forecast(prepared(), clock(60.0))
    with pytest.raises(ConfigError, match="or --samples 54"):
        forecast(prepared(), clock(100.0))


def test_what_is_asked_again_about_a_picture_costs_less():
    samples = [Sample((), "?", image_id=f"image{k % 5}") for k in range(20)]
    assert Pace(1.0, 0.2, 0.5).of(samples) == pytest.approx(0.4)
    assert Pace(1.0, 0.2, 0.5).of(samples[:5]) == 1.0


def test_a_promise_is_given_time_for_its_tests(pace):
    plain = forecast(prepared(), clock(None))
    promised = forecast(prepared(promise={"loss": "gap", "most": 0.1}), clock(None))
    assert promised.configs > plain.configs


def test_pictures_stay_whole():
    samples = tuple(Sample((), "?", image_id=f"image{k % 5}") for k in range(20))
    found = first_pictures(CalibrationSet(samples), 9)
    assert [s.image_id for s in found] == ["image0", "image1"] * 4
    assert first_pictures(CalibrationSet(samples), 20).samples == samples
    assert len(first_pictures(CalibrationSet(samples), 1)) == 4


def test_a_sample_is_timed_on_the_model():
    loaded = load_model("tiny")
    data = load_calibration("tiny", samples=8, held_out_samples=4)
    study = SimpleNamespace(
        spec=StudySpec(), loaded=loaded, calibration=data[0], held_out=data[1], deepest=1, levels=()
    )
    found = module.timed(study)
    assert 0 < found.trial < 60
    assert 0 < found.again <= found.unpruned < 60
