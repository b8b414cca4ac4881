"""Points of a scrambled Sobol sequence that all workers share, also as a start for any sampler."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.trial import FrozenTrial

from prunetune.study.trials.around import Around
from prunetune.study.trials.best import FINISHED


class SharedSequence(QMCSampler):
    """Draws from one scrambled Sobol sequence, whoever works on the study; each trial its point.

    Args:
        sequence: Seed of the scrambling, the same for all workers and resumptions of a study.
        seed: Of what is drawn before a trial has shown which parameters there are; a worker's own.
    """

    def __init__(self, sequence: int, seed: int) -> None:
        super().__init__(
            seed=sequence,
            scramble=True,
            independent_sampler=RandomSampler(seed=seed),
            warn_independent_sampling=False,
        )
        self._number = 0

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the trial's point of the sequence."""
        self._number = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        # Optuna reads its count and writes it in two steps: two workers would get the same point.
        return self._number


class SpreadStart(Around):
    """Draws the first points from a Sobol sequence, then leaves it to another sampler.

    Args:
        inner: The sampler that goes on; it models from its first own draw.
        startup: Finished trials, enqueued ones included, before it does.
        spread: The sequence.
    """

    def __init__(self, inner: BaseSampler, startup: int, spread: SharedSequence) -> None:
        super().__init__(inner)
        self.startup, self._spread = startup, spread
        self._now: tuple[int, BaseSampler] | None = None

    def _active(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        """Return who draws a trial, the same one for all its parameters."""
        if self._now is None or self._now[0] != trial.number:
            done = len(study.get_trials(deepcopy=False, states=FINISHED))
            self._now = trial.number, self.inner if done >= self.startup else self._spread
        return self._now[1]

    def reseed_rng(self) -> None:
        """Give the samplers other random numbers."""
        super().reseed_rng()
        self._spread.reseed_rng()
