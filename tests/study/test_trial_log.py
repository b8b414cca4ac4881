"""The log of trials that lies in a run's folder."""

import json
import threading

from fakes import Fake, spec

from prunetune.study.study import run_trials
from prunetune.study.trials.trial_log import TrialLog


def test_the_log_holds_the_trials_of_a_second_study_in_the_folder(tmp_path):
    for name in ("one", "two", "two"):
        run_trials(spec(trials=3), Fake(), out=tmp_path, study_name=name)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 1, 2] * 2


def logged(tmp_path):
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["trial"] for line in lines)


def test_two_commands_in_one_folder_log_each_trial_once(tmp_path):
    study = run_trials(spec(trials=2), Fake(), out=tmp_path)
    both = [TrialLog(tmp_path / "log.jsonl") for _ in range(2)]
    for log in both:
        log(study)
    run_trials(spec(trials=5), Fake(), out=tmp_path, records=False)
    for log in both:
        log(study)
    assert logged(tmp_path) == [0, 1, 2, 3, 4]
    # The twin: whoever begins anew in an empty file logs everything.
    (tmp_path / "log.jsonl").unlink()
    TrialLog(tmp_path / "log.jsonl")(study)
    assert logged(tmp_path) == [0, 1, 2, 3, 4]


def test_a_log_that_is_a_device_is_left(tmp_path, caplog):
    study = run_trials(spec(trials=1), Fake(), out=tmp_path, records=False)
    (tmp_path / "log.jsonl").symlink_to("/dev/zero")
    TrialLog(tmp_path / "log.jsonl")(study)
    assert "not a plain file" in caplog.text


def test_commands_that_log_at_once_wait_for_each_other(tmp_path):
    study = run_trials(spec(trials=40, presets=[]), Fake(), out=tmp_path, records=False)
    path = tmp_path / "log.jsonl"
    threads = [threading.Thread(target=TrialLog(path), args=(study,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logged(tmp_path) == list(range(40))
