"""The best trials: one, or the front of a study that minimises metric and cost."""

import math
from collections.abc import Mapping, Sequence

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
COST_NAMES = {"keep": "mean_retention", "flops": "flops_ratio", "kv_mib": "kv_mib"}
"""Name of the second objective, by kind of budget."""


def metric_of(trial: FrozenTrial) -> float:
    """Return the metric of a complete trial, whatever else its study minimises."""
    assert trial.values
    return float(trial.values[0])


def cost_of(trial: FrozenTrial) -> float:
    """Return the cost of a complete trial of a study that minimises that, too."""
    assert trial.values
    return float(trial.values[1])


def best_complete(study: Study) -> FrozenTrial | None:
    """Return the complete trial with the lowest metric, or None before there is one."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(complete, key=lambda t: (metric_of(t), t.number), default=None)


def estimated_mean(values: Mapping[int, float], best: FrozenTrial | None) -> float:
    """Estimate a config's mean over all samples from its values on the first ones.

    It is the best trial's mean plus the mean difference to it on the shared samples, which no run
    of easy samples can flatter.

    Args:
        values: Sample index to value; what is no sample of the best trial is left out.
        best: The best complete trial; None before there is one.
    """
    if best is None:
        return math.fsum(values.values()) / len(values)
    theirs = best.intermediate_values
    shared = [value - theirs[i] for i, value in values.items() if i in theirs]
    return metric_of(best) + math.fsum(shared) / len(shared)


def known_mean(trial: FrozenTrial, best: FrozenTrial | None) -> float:
    """Return a complete trial's metric, or what is known of a stopped one's.

    Args:
        trial: One that has reported samples.
        best: The best complete trial; None before there is one.
    """
    if trial.state is TrialState.COMPLETE:
        return metric_of(trial)
    return estimated_mean(trial.intermediate_values, best)


def front(study: Study) -> list[FrozenTrial]:
    """Return the trials that none beats in both metric and cost, by rising cost.

    Of equal ones the first; of a study with one objective its best trial.
    """
    if len(study.directions) == 1:
        best = best_complete(study)
        return [] if best is None else [best]
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found: list[FrozenTrial] = []
    for trial in sorted(complete, key=lambda t: (cost_of(t), metric_of(t), t.number)):
        if not found or metric_of(trial) < metric_of(found[-1]):
            found.append(trial)
    return found


def spread(trials: Sequence[FrozenTrial], count: int) -> list[FrozenTrial]:
    """Return ``count`` of the trials, evenly spread, the first and the last among them."""
    if len(trials) <= count:
        return list(trials)
    if count == 1:
        return [trials[len(trials) // 2]]
    return [trials[round(k * (len(trials) - 1) / (count - 1))] for k in range(count)]


def first_number(trial: FrozenTrial) -> int:
    """Return the number that a trial began under; what was interrupted runs again under another."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def since_better(study: Study) -> int:
    """Return how many trials have finished since one was better than all before it.

    Better is a lower metric, or with two objectives a place on the front. Presets and other starts
    do not count: they are queued first, whatever they are worth, and nothing is searched before
    they have run. Counted by number, so all workers agree and so does a resumed run. Optuna's
    ``BestValueStagnationEvaluator`` counts complete trials only; most here are stopped early.
    """
    best = front(study)
    if not best:
        return 0
    # Whoever came onto the front last is on it still, or was pushed off by one that came later.
    last = max(trial.number for trial in best)
    trials = study.get_trials(deepcopy=False)
    starts = {t.number: t for t in trials if {"preset", "start"} & t.user_attrs.keys()}
    last = max([last, *map(first_number, starts.values())])
    searched = (t.number for t in trials if t.state in FINISHED and t.number not in starts)
    return sum(number > last for number in searched)


def on_plateau(study: Study, patience: int) -> bool:
    """Tell whether ``patience`` trials have finished without a better one; 0 is endless."""
    return patience > 0 and since_better(study) >= patience
