"""What a run will do, from one timed sample; what fits into its time."""

import re
from types import SimpleNamespace

import pytest

from prunetune.calibration import CalibrationSet, Sample, load_calibration
from prunetune.cli.printed import bench as printed
from prunetune.errors import ConfigError, StudyError
from prunetune.models import load_model
from prunetune.review.report import report_file
from prunetune.spec import StudySpec
from prunetune.study import forecast as module
from prunetune.study.clock import Clock
from prunetune.study.durations import bound, shown
from prunetune.study.forecast import Pace, first_pictures, forecast
from prunetune.study.outcome.decision import check_enough


def prepared(calibration=100, held_out=480, **fields):
    done = fields.pop("done", 0)
    one, two = (
        CalibrationSet(tuple(Sample((), "?", answer="x", image_id=str(k)) for k in range(count)))
        for count in (calibration, held_out)
    )
    return SimpleNamespace(spec=StudySpec(**fields), calibration=one, held_out=two, done=done)


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


def test_a_promise_names_the_time_it_needs_before_the_unpruned_run(pace):
    promised = prepared(16, 480, promise={"loss": "accuracy", "most": 0.5 / 100})
    with pytest.raises(ConfigError, match="as many as the promise needs") as refused:
        forecast(promised, clock(60.0))
    enough = float(re.search(r"about (\d+) or more", str(refused.value))[1])
    plan = forecast(promised, clock(enough))
    assert plan.held_out > 16
    check_enough(promised.spec.promise, promised.held_out.samples[: plan.held_out], True)
    short = promised.held_out.samples[: plan.held_out // 2]
    with pytest.raises(StudyError):
        check_enough(promised.spec.promise, short, True)


def test_what_is_done_and_what_follows_are_counted(pace):
    plan = forecast(prepared(trials=6, done=4), clock(None), requests=36)
    assert "up to 2 more trials (4 of 6 are done)" in plan.words()
    assert "36 timed requests, about 36 s" in plan.words()
    assert plan.after == plan.table + 36


def test_timed_requests_end_by_the_clock_and_in_words(monkeypatch, caplog, tmp_path):
    study, ran = SimpleNamespace(out=tmp_path, loaded=None, held_out=CalibrationSet(())), []
    monkeypatch.setattr(report_file, "found_search", lambda *names, **more: None)

    def bench(found, loaded, samples, price, show):
        for done in range(1, 37):
            times[0] += 1.0
            show("timed requests", done, 36)

    monkeypatch.setattr(printed, "bench_study", bench)
    times = [0.0]
    ends = Clock(10.0, begun=0.0, page=3.0, now=lambda: times[0])
    assert printed.bench_search(study, {}, None, lambda *step: ran.append(step), ends) is None
    assert len(ran) == 7
    assert "not timed: the timeout of 10 s has come after 7 of 36 timed" in caplog.text
    times[0] = 0.0
    printed.bench_search(study, {}, None, lambda *step: ran.append(step), Clock())
    assert len(ran) == 7 + 37


def test_bounds_are_rounded_up():
    assert bound(146) == shown(146) == "2 min 26 s"
    assert (bound(12.1), shown(12.1)) == ("13 s", "12 s")
    assert (bound(1001), shown(1001)) == ("17 min", "17 min")
    assert (bound(961), shown(961)) == ("17 min", "16 min")


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
