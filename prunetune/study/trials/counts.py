"""What a study has run: trials by how they ended, samples, and why there are no more."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from prunetune.spec import StudySpec
from prunetune.study.trials.best import FINISHED, first_number, on_plateau
from prunetune.study.trials.trials import EVALUATIONS


def why_stopped(study: Study, spec: StudySpec) -> str | None:
    """Return what ended a study before it had all its trials; None where nothing did."""
    if len(study.get_trials(deepcopy=False, states=FINISHED)) >= spec.trials:
        return None
    if on_plateau(study, spec.patience):
        return f"no better trial in {spec.patience}"
    return None if spec.timeout is None else f"the timeout of {spec.timeout:g} s"


def count_trials(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Return how many trials are complete, pruned and failed."""
    names = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    # What was left unfinished, to make room or by Ctrl-C, and is queued again has not failed. It
    # may be queued again and again: every copy names the first of them, and only the last ended.
    last = {first_number(t): t.number for t in sorted(trials, key=lambda t: t.number)}
    return {
        name: sum(t.state is state and t.number == last[first_number(t)] for t in trials)
        for name, state in names.items()
    }


def count_evaluations(trials: Sequence[FrozenTrial]) -> int:
    """Return the samples that trials were measured on."""
    return sum(_evaluations(trial.user_attrs) for trial in trials)


def _evaluations(attrs: Mapping[str, Any]) -> int:
    # Studies of old do not say it; a repeat there names samples that another trial was measured on.
    known = 0 if "repeats" in attrs else attrs.get("samples_used", 0)
    return int(attrs.get(EVALUATIONS, known))
