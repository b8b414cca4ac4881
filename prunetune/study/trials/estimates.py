"""Samplers learn from estimates: to them, a stopped trial is complete at its estimated mean.

Optuna's TPE puts every complete trial before every pruned one, however bad, and its GP sampler
does not look at pruned trials at all. Here most trials are stopped, each with an estimate of its
mean (`trials/trials.py`), and the complete ones are mostly presets: samplers then saw presets only.
"""

import copy
from collections.abc import Container

from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from prunetune.study.trials.around import Around


class EstimatesSampler(Around):
    """Shows another sampler the study with stopped trials complete at their estimated means.

    Args:
        inner: The sampler that draws.
    """

    def __init__(self, inner: BaseSampler) -> None:
        super().__init__(inner)
        self._seen: tuple[Study, int, Study] | None = None

    def _shown(self, study: Study, trial: FrozenTrial) -> Study:
        """Return the study as it is shown while one trial is drawn, also parameter by parameter.

        The copy has a cache of trials of its own, which lasts as long as Optuna's: one trial.
        """
        seen = self._seen
        if seen is None or seen[0] is not study or seen[1] != trial.number:
            shown = copy.copy(study)
            shown.__class__ = _Estimated
            self._seen = seen = study, trial.number, shown
        return seen[2]


class _Estimated(Study):
    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy=deepcopy, states=None, use_cache=use_cache)
        # Each copy begins without; a stopped trial does not change any more.
        known: dict[int, FrozenTrial] = self.__dict__.setdefault("_known", {})
        shown = []
        for trial in trials:
            if trial.state is TrialState.PRUNED and trial.intermediate_values:
                if deepcopy or trial.number not in known:
                    known[trial.number] = _completed(trial)
                trial = known[trial.number]
            if states is None or trial.state in states:
                shown.append(trial)
        return shown


def _completed(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = TrialState.COMPLETE
    shown.value = trial.intermediate_values[max(trial.intermediate_values)]
    return shown
