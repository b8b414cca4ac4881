"""Which of the best trials to export, when their order is within the noise of the samples.

Two configs are compared sample by sample; a picture's questions are not independent, so the
standard error is over pictures. What lies within one standard error of the best cannot be told from
it by this data: the simplest of these is taken, which is cheaper to run and has less to go wrong.
"""

import math
from collections.abc import Mapping, Sequence

from prunetune.config import PruningConfig

WITHIN = 1.0
"""Standard errors of the paired difference to the best."""


def paired(
    one: Sequence[float], other: Sequence[float], images: Sequence[str]
) -> tuple[float, float]:
    """Return the mean of ``one - other`` over samples, and its standard error over pictures.

    Args:
        one: A value a sample.
        other: Of the same samples.
        images: The picture that each shows; fewer than two tell nothing of an error, which is 0.
    """
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean = math.fsum(apart) / len(apart)
    # A picture's share of the error: what its samples are off the mean, together.
    off: dict[str, float] = {}
    for value, image in zip(apart, images, strict=True):
        off[image] = off.get(image, 0.0) + value - mean
    count = len(off)
    if count < 2:
        return mean, 0.0
    squares = math.fsum(value * value for value in off.values())
    return mean, math.sqrt(squares * count / (count - 1)) / len(apart)


def effort(config: PruningConfig) -> tuple[int, ...]:
    """Return what a config takes to run, least first: compared from left to right.

    Its stages; its scorers; whether another question about a picture needs another choice; whether
    keys carry mass; restorers.
    """
    stages = config.stages
    return (
        len(stages),
        len({scorer.name for stage in stages for scorer in stage.scorers}),
        int(config.prompt_dependent),
        int(any(stage.mass for stage in stages)),
        sum(stage.restorer is not None for stage in stages),
    )


def settle(
    values: Mapping[int, Sequence[float]],
    configs: Mapping[int, PruningConfig],
    images: Sequence[str],
) -> tuple[int, list[int]]:
    """Return the trial to export, and those that cannot be told from the best, best first.

    Args:
        values: Trial number to a value a calibration sample, lower is better.
        configs: Trial number to config.
        images: The picture that each sample shows.
    """
    order = sorted(values, key=lambda n: (math.fsum(values[n]), n))
    best = order[0]
    near = [best]
    for number in order[1:]:
        more, error = paired(values[number], values[best], images)
        if more <= WITHIN * error:
            near.append(number)
    # Sorting is stable: of equally simple ones the better, then the earlier.
    return min(near, key=lambda n: effort(configs[n])), near
