"""Points near the best ones, between those of any sampler: a few of their values changed.

A space has thirty parameters and a search a hundred trials. From starts that are good already TPE,
CMA-ES and NSGA-II find nothing better with so few (docs/search.md has figures); changing two values
of a good point at a time does. SMAC, too, has steps of a local search between what its model
proposes (Hutter, Hoos, Leyton-Brown 2011, section 4).
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from prunetune.study.trials.around import Around
from prunetune.study.trials.best import FINISHED, best_complete, known_mean

CHANGED = 2.0
"""Values that change, on average."""
FAR = 0.3
"""Share of these that are drawn anew from everywhere; the others move."""
WIDTH = 0.2
"""Standard deviation of a move, as a share of a parameter's range."""
RANKS = (0.6, 0.25, 0.15)
"""How often each of the best points is the one that is changed."""
_TRIES = 50


class _Point(NamedTuple):
    values: dict[str, Any]
    space: dict[str, BaseDistribution]


class NearBest(Around):
    """Draws some points near the best ones, and leaves the others to another sampler.

    Args:
        inner: The sampler of the other points, and of all before there are enough.
        share: Of the points that are drawn near the best, 0 to 1.
        startup: Finished trials, enqueued ones included, before the first of them.
        seed: Of the random numbers.
        config_of: Digest of the config that parameters stand for, which trials have as
            ``config_digest``: some parameters may change without changing it.
    """

    def __init__(
        self,
        inner: BaseSampler,
        share: float,
        startup: int,
        seed: int,
        config_of: Callable[[Mapping[str, Any]], str],
    ) -> None:
        super().__init__(inner)
        self.share, self.startup = share, startup
        self._config_of, self._rng = config_of, random.Random(seed)
        self._now: tuple[int, _Point | None] | None = None

    def _point(self, study: Study, trial: FrozenTrial) -> _Point | None:
        """Return a trial's point near the best, or None where the other sampler draws it."""
        if self._now is None or self._now[0] != trial.number:
            self._now = trial.number, self._draw(study)
        return self._now[1]

    def _draw(self, study: Study) -> _Point | None:
        trials = study.get_trials(deepcopy=False)
        finished = [t for t in trials if t.state in FINISHED and t.intermediate_values]
        if len(finished) < self.startup or self._rng.random() >= self.share:
            return None
        best = best_complete(study)
        finished.sort(key=lambda t: (known_mean(t, best), t.number))
        distinct: dict[str | None, FrozenTrial] = {}
        for known in finished:
            distinct.setdefault(known.user_attrs.get("config_digest"), known)
        parents = list(distinct.values())[: len(RANKS)]
        seen = {t.user_attrs.get("config_digest") for t in trials}
        for _ in range(_TRIES):
            [parent] = self._rng.choices(parents, RANKS[: len(parents)])
            point = self._changed(parent)
            if self._config_of(point) not in seen:
                return _Point(point, parent.distributions)
        return None

    def _changed(self, parent: FrozenTrial) -> dict[str, Any]:
        """Return a point's values with at least one of them changed."""
        point = dict(parent.params)
        names = [n for n, d in parent.distributions.items() if isinstance(d, FloatDistribution)]
        chosen = [name for name in names if self._rng.random() * len(names) < CHANGED]
        for name in chosen or [self._rng.choice(names)]:
            held = parent.distributions[name]
            assert isinstance(held, FloatDistribution)
            if self._rng.random() < FAR:
                value = self._rng.uniform(held.low, held.high)
            else:
                value = self._rng.gauss(point[name], WIDTH * (held.high - held.low))
            point[name] = min(max(value, held.low), held.high)
        return point

    def reseed_rng(self) -> None:
        """Give the samplers other random numbers."""
        super().reseed_rng()
        self._rng.seed()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        if (point := self._point(study, trial)) is None:
            return super().infer_relative_search_space(study, trial)
        return point.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw parameters together."""
        if (point := self._point(study, trial)) is None:
            return super().sample_relative(study, trial, search_space)
        return point.values
