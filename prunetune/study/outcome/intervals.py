"""How sure a mean over samples is, where some of them show the same picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_DRAWS = 2000


def bootstrap_ci(
    values: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap 95% interval of the mean.

    Args:
        values: One a sample.
        groups: Samples of one group are drawn together: questions on one picture are not
            independent. None draws samples one by one.
        seed: Of the draws.
    """
    names = list(groups) if groups is not None else [str(i) for i in range(len(values))]
    sums, counts = _by_group(values, names)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def group_means(values: Sequence[float], groups: Sequence[str]) -> "np.ndarray[Any, Any]":
    """Return the mean of each group of samples, in order of their first ones."""
    sums, counts = _by_group(values, groups)
    means: np.ndarray[Any, Any] = sums / counts
    return means


def _by_group(
    values: Sequence[float], groups: Sequence[str]
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Return the sum and the number of samples of each group."""
    index = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    member = np.array([index[name] for name in groups])
    return np.bincount(member, weights=np.asarray(values, dtype=float)), np.bincount(member)


def lower_p_value(difference: Sequence[float], images: Sequence[str]) -> float:
    """Return the p-value of a one-sided Wilcoxon test that differences are below 0.

    Questions on one picture are not independent: a picture counts once, by its mean.
    """
    from scipy.stats import wilcoxon

    means = group_means(difference, images)
    if len(means) < 2:
        return 1.0

    # zsplit: two equal configs give differences of 0 only, which other methods cannot take.
    # Left to itself scipy permutes where few sizes tie, which takes seconds.
    sizes = set(map(abs, means.tolist()))
    method = "exact" if 0.0 not in sizes and len(means) == len(sizes) <= 50 else "approx"
    found = wilcoxon(means, method=method, alternative="less", zero_method="zsplit")
    return float(found.pvalue)
