"""Which trial wins, and what is said of it beside the presets."""

import math

import optuna
import pytest
from fakes import Fake, search, spec
from optuna.trial import TrialState

from prunetune.errors import StudyError
from prunetune.study.outcome.selection import shortlist
from prunetune.study.study import run_trials


def test_an_exported_config_names_the_releases_that_measured_it(tmp_path):
    study = run_trials(spec(trials=2), Fake(), out=tmp_path)
    now = study.user_attrs["versions"]
    study.set_user_attr("versions", now | {"torch": "1.0"})
    assert search(tmp_path, trials=2).best.provenance.versions == now


def add_trial(study, values, state, digest):
    study.add_trial(
        optuna.trial.create_trial(
            state=state,
            value=sum(values) / len(values),
            intermediate_values=dict(enumerate(values)),
            user_attrs={"config_digest": digest},
        )
    )


def test_a_pruned_trial_is_not_flattered_by_easy_samples():
    study = optuna.create_study()
    add_trial(study, [0.1, 0.1, 0.5, 0.5], TrialState.COMPLETE, "best")
    add_trial(study, [0.2, 0.2], TrialState.PRUNED, "worse, on the easy half")
    add_trial(study, [0.05, 0.1], TrialState.PRUNED, "better")
    add_trial(study, [0.1, 0.1, 0.5, 0.5], TrialState.COMPLETE, "best")
    assert [t.number for t in shortlist(study, 5)] == [2, 0, 1]
    assert len(shortlist(study, 2)) == 2


def test_estimates_never_push_out_the_best_complete_trial():
    study = optuna.create_study()
    add_trial(study, [0.1, 0.1, 0.5, 0.5], TrialState.COMPLETE, "best")
    add_trial(study, [0.05, 0.1], TrialState.PRUNED, "perhaps better")
    add_trial(study, [0.05, 0.09], TrialState.PRUNED, "perhaps better still")
    assert [t.number for t in shortlist(study, 1)] == [2, 0]
    assert [t.number for t in shortlist(study, 2)] == [2, 1, 0]
    assert [t.number for t in shortlist(study, 3)] == [2, 1, 0]


@pytest.mark.parametrize("off", ["answers", "always"])
def test_the_winner_is_measured_again_as_its_trial_was(tmp_path, caplog, off):
    class SixteenBits(Fake):
        """Its numbers depend on what runs beside a sample: here, on answers or on the time."""

        def badness(self, config):
            late = off == "always" and len(self.configs) > 4
            return super().badness(config) * (1.001 if self.asked or late else 1.0)

        def evaluate(self, config, *, answers=True):
            self.asked = answers
            return super().evaluate(config, answers=answers)

    search(tmp_path, SixteenBits(), trials=4)
    # The twin: what cannot be measured again is said.
    assert ("in the study and is" in caplog.text) == (off == "always")


def test_what_gives_no_usable_state_on_held_out_data_is_said_and_never_wins(tmp_path):
    class Broken(Fake):
        def badness(self, config):
            random = any(s.name == "random" for stage in config.stages for s in stage.scorers)
            return math.nan if random else super().badness(config)

    result = search(tmp_path, held_out=Broken(seed=1), trials=4)
    rows = {row.name: row for row in result.baselines}
    assert rows["random"].scores is None
    assert "no usable state on 8 of 8 samples" in rows["random"].note
    assert rows["uniform"].scores is not None
    assert "nan" not in result.verdict

    class Worse(Fake):
        def badness(self, config):
            return math.nan

    with pytest.raises(StudyError, match="no usable state on 48 of 48 samples"):
        search(tmp_path, held_out=Worse(), trials=4)
