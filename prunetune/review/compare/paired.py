"""Two configs measured on the same samples, one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunetune.budget import flops_ratio
from prunetune.config import PruningConfig

if TYPE_CHECKING:
    from prunetune.calibration import CalibrationSet
    from prunetune.measure.evaluator import Evaluator
    from prunetune.measure.scores import Scores


@dataclass(frozen=True)
class Difference:
    """The second config's mean minus the first one's, over the same samples.

    Attributes:
        mean: Of the differences, sample by sample.
        interval: Bootstrap 95% interval of ``mean``; samples of one picture are drawn together.
        pictures: How many there were; one alone tells nothing of the others.
    """

    mean: float
    interval: tuple[float, float]
    pictures: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.pictures > 1 and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class Measured:
    """Both configs on the same samples.

    Attributes:
        scores: Means of the first and of the second config.
        flops: Prefill FLOPs of the language model over unpruned, of both.
        differences: By figure: ``gap``, ``kl``, ``top1_agreement`` and, with answers, ``accuracy``.
    """

    scores: "tuple[Scores, Scores]"
    flops: tuple[float, float]
    differences: dict[str, Difference]

    @property
    def verdict(self) -> str:
        """One sentence: which config has the lower gap, and whether that is more than noise."""
        gap = self.differences["gap"]
        low, high = gap.interval
        if gap.mean == 0 == low == high:
            return "A and B have the same gap on every sample."
        better, size = ("B", -gap.mean) if gap.mean < 0 else ("A", gap.mean)
        interval = f"B - A is {gap.mean:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"
        doubt = "" if gap.sure else ", which is within noise"
        return f"{better} has the lower gap, by {size:.4f}{doubt} ({interval})."


def measure_both(
    loaded: Any,
    configs: tuple[PruningConfig, PruningConfig],
    samples: "CalibrationSet",
    *,
    batch_size: int = 16,
    seed: int = 0,
    match: str = "vqa",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Measure two configs on the same samples of a model.

    Args:
        loaded: ``prunetune.models.LoadedModel``.
        configs: The two.
        samples: At least one.
        batch_size: Samples a batch.
        seed: Of the bootstrap's draws.
        match: How answers are compared, see ``calibration.matching``.
        progress: Called with the samples measured so far, and how many there will be.

    Raises:
        ConfigError: A config does not fit the model.
        DataError: There are no samples, or one has no picture.
    """
    from prunetune.measure.evaluator import Evaluator
    from prunetune.measure.scores import Scores, image_ids
    from prunetune.runtime.apply import check_fits, family_of

    for config in configs:
        check_fits(family_of(loaded.model), config, strict=False)
    total = 3 * len(samples)
    evaluator = Evaluator(
        loaded,
        samples,
        deepest=max((config.stages[0].layer for config in configs if config.stages), default=0),
        batch_size=batch_size,
        match=match,
        progress=lambda done: progress(done, total),
    )
    results: list[list[Any]] = []
    for config in configs:
        results.append([])
        for batch in evaluator.evaluate(config):
            results[-1] += [result for _, result in batch]
            progress(len(samples) + sum(map(len, results)), total)
    a, b = results
    return Measured(
        (Scores.of(a), Scores.of(b)),
        (_flops(configs[0], evaluator), _flops(configs[1], evaluator)),
        _differences(a, b, image_ids(samples.samples), seed),
    )


def _flops(config: PruningConfig, evaluator: "Evaluator") -> float:
    return flops_ratio(config.stages, evaluator.facts(), evaluator.token_share(config.pixels))


def _differences(
    a: list[Any], b: list[Any], images: Sequence[str], seed: int
) -> dict[str, Difference]:
    """Return the second config's figures minus the first one's, sample by sample."""
    columns = {
        "gap": [y.gap - x.gap for x, y in zip(a, b)],
        "kl": [y.kl - x.kl for x, y in zip(a, b)],
        "top1_agreement": [float(y.agrees) - float(x.agrees) for x, y in zip(a, b)],
    }
    found = {name: _difference(column, images, seed) for name, column in columns.items()}
    answered = [i for i, result in enumerate(a) if result.correct is not None]
    if answered:
        right = [float(b[i].correct) - float(a[i].correct) for i in answered]
        found["accuracy"] = _difference(right, [images[i] for i in answered], seed)
    return found


def _difference(values: Sequence[float], images: Sequence[str], seed: int) -> Difference:
    from prunetune.study.outcome.intervals import bootstrap_ci

    interval = bootstrap_ci(values, images, seed)
    return Difference(sum(values) / len(values), interval, len(set(images)))
