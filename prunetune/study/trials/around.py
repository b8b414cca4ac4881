"""A sampler around another one, which draws as that one does unless a subclass says otherwise."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState


class Around(BaseSampler):
    """Leaves everything to another sampler.

    Args:
        inner: The other one; it hears how every trial begins and ends.
    """

    def __init__(self, inner: BaseSampler) -> None:
        self.inner = inner

    def _active(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        """Return who draws a trial, the same one for all its parameters."""
        return self.inner

    def _shown(self, study: Study, trial: FrozenTrial) -> Study:
        """Return the study as it is shown to who draws."""
        return study

    def reseed_rng(self) -> None:
        """Give the sampler other random numbers."""
        self.inner.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        active = self._active(study, trial)
        return active.infer_relative_search_space(self._shown(study, trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw parameters together."""
        active = self._active(study, trial)
        return active.sample_relative(self._shown(study, trial), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter."""
        active, shown = self._active(study, trial), self._shown(study, trial)
        return active.sample_independent(shown, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on that a trial begins."""
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Pass on how a trial ended."""
        self.inner.after_trial(study, trial, state, values)
