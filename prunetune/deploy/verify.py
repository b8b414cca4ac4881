"""Re-measures a config through the deployment path: ``prunetune.apply`` and the model's own code.

Nothing of the search is used: no cached states, no suffix runner. Every sample goes through
``generate``, unpruned and pruned, over its full prompt.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.budget import retention_by_layer
from prunetune.calibration import CalibrationSet, load_sides, without_refused
from prunetune.config import PruningConfig
from prunetune.deploy.meter import Meter, SplitScores, Tally, mean
from prunetune.errors import DataError
from prunetune.models.embedded import is_embedded
from prunetune.runtime.apply import apply, same_weights

logger = logging.getLogger(__name__)

TOLERANCE, HALF_TOLERANCE = 1e-6, 1e-3
"""Up to here a gap counts as reproduced: in single, and in half precision."""


@dataclass(frozen=True)
class LayerCount:
    """Image tokens that one decoder layer computes on.

    Attributes:
        layer: 0-based.
        retention: What the config promises.
        tokens: Mean over samples, as counted.
        promised: Mean over samples, as the config promises.
        worst: Largest difference of a sample's count from its promise, in tokens.
    """

    layer: int
    retention: float
    tokens: float
    promised: float
    worst: float


@dataclass(frozen=True)
class Splits:
    """The data of a verification.

    Attributes:
        calibration: Calibration split.
        held_out: Held-out split; None where there is none.
        same: Whether the calibration samples are those of the config's provenance.
    """

    calibration: CalibrationSet
    held_out: CalibrationSet | None
    same: bool


@dataclass(frozen=True)
class Verification:
    """What was measured.

    Attributes:
        calibration: Scores on the calibration split.
        held_out: Scores on the held-out split; None where there is none.
        layers: Token counts of every decoder layer, over both splits.
        counts_hold: Whether every sample's count at every layer is within one token an image of
            the promise, and the cache of every layer is as long as the counts say.
        promised_gap: Gap of the provenance.
        difference: Measured minus promised gap; None where the data or the model is another.
        tolerance: Up to here a gap counts as reproduced; half precision rounds more.
        reproduced: Whether ``difference`` is at most ``tolerance``; None where it is not known.
        reason: Why it is not known.
        same_weights: Whether the model has the provenance's weights, in their number format; None
            where that is not known.
    """

    calibration: SplitScores
    held_out: SplitScores | None
    layers: tuple[LayerCount, ...]
    counts_hold: bool
    promised_gap: float | None
    difference: float | None
    tolerance: float
    reproduced: bool | None
    reason: str
    same_weights: bool | None


def load_splits(
    config: PruningConfig,
    data: str,
    *,
    held_out: str | None = None,
    samples: int | None = None,
    held_out_samples: int | None = None,
    skip_bad: bool = False,
    processor: Any = None,
    template: Mapping[str, Any] | None = None,
    allow_remote: bool = False,
) -> Splits:
    """Load calibration and held-out samples as the config's study did.

    The split and the order come from the provenance's seed; where the study used fewer samples
    than there are, its calibration digest tells how many.

    Args:
        config: The config.
        data: Calibration source.
        held_out: Held-out source; by default the other side of ``data``.
        samples: At most so many samples of each side.
        held_out_samples: Of the held-out side, where another number is wanted there.
        skip_bad: Leave out bad pictures and rows.
        processor: Of the model; with ``skip_bad`` what it refuses is left out, too.
        template: Options of the model's chat template.
        allow_remote: Fetch pictures that rows name by ``http:`` URLs.
    """
    wanted = config.provenance.calibration_digest

    def load(source: str | None, as_before: bool = False) -> Splits:
        calibration, other = load_sides(
            data,
            source,
            seed=config.provenance.seed or 0,
            samples=samples,
            held_out_samples=held_out_samples or samples,
            skip_bad=skip_bad,
            template=template,
            allow_remote=allow_remote,
            as_before=as_before,
        )
        if skip_bad and processor is not None:
            calibration = without_refused(processor, calibration)
            other = without_refused(processor, other)
        if samples is None and wanted is not None:
            calibration = _shortened(calibration, wanted)
        same = wanted is not None and calibration.digest() == wanted
        return Splits(calibration, other if len(other) else None, same)

    splits = load(held_out)
    if splits.same or wanted is None:
        return splits
    if held_out is not None:
        # The study held out a part of its data, and its config is looked at on other data.
        part = _or_none(lambda: load(None))
        if part is not None and part.same:
            return Splits(part.calibration, splits.held_out, True)
    if is_embedded(data):
        return splits
    older = _or_none(lambda: load(held_out, as_before=True))
    if older is None or not older.same:
        return splits
    logger.warning(
        "%s is split by names, as the study of this config did: copies of a picture may be on both "
        "sides",
        data,
    )
    return older


def _or_none(load: Callable[[], Splits]) -> Splits | None:
    try:
        return load()
    except DataError:
        return None


def _shortened(calibration: CalibrationSet, wanted: str) -> CalibrationSet:
    """Return the first samples whose digest is ``wanted``; all of them if there are none."""
    # Quadratic in the samples: bounded to what takes about a second.
    for count in (len(calibration), *range(1, min(len(calibration), 1000))):
        first = calibration.limit(count)
        if first.digest() == wanted:
            return first
    return calibration


def verify(
    config: PruningConfig,
    loaded: Any,
    splits: Splits,
    *,
    batch_size: int = 16,
    match: str = "vqa",
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Measure a config on a loaded model.

    Args:
        config: The config.
        loaded: ``prunetune.models.LoadedModel``.
        splits: From ``load_splits``.
        batch_size: Samples a batch; the search's default reproduces its gap best.
        match: How answers are compared: ``vqa``, ``exact`` or ``contains``.
        progress: Called with the number of samples done so far.

    Raises:
        ConfigError: The config is for another model.
        DataError: A split is empty or a prompt has no image.
    """
    apply(loaded.model, config, processor=loaded.processor).remove()
    meter = Meter(config, loaded, batch_size, match)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    tallies = [meter.run(side, advance) for side in (splits.calibration, splits.held_out) if side]
    scores = [tally.scores() for tally in tallies]
    layers = _layers(config, tallies)
    promised = config.provenance.gap
    reason = _unknown(config, loaded, splits)
    difference = None if promised is None or reason else scores[0].gap - promised
    half = next(loaded.model.parameters()).element_size() < 4
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    return Verification(
        calibration=scores[0],
        held_out=scores[1] if len(scores) > 1 else None,
        layers=layers,
        counts_hold=_hold(config, tallies),
        promised_gap=promised,
        difference=difference,
        tolerance=tolerance,
        reproduced=None if difference is None else abs(difference) <= tolerance,
        reason=reason,
        same_weights=same_weights(loaded.model, config),
    )


def _unknown(config: PruningConfig, loaded: Any, splits: Splits) -> str:
    """Return why the provenance's gap cannot be compared; empty where it can."""
    if config.provenance.gap is None:
        return "the config's provenance has no gap"
    if config.model.fingerprint not in (None, loaded.fingerprint):
        return "the model is not the one of the provenance"
    if not splits.same:
        return (
            "the calibration samples are not those of the provenance; give them with --data, all "
            "of them (no --samples)"
        )
    return ""


def _promises(config: PruningConfig) -> list[float]:
    return retention_by_layer(config.stages, config.model.num_layers)


def _layers(config: PruningConfig, tallies: Sequence[Tally]) -> tuple[LayerCount, ...]:
    counts = [row for tally in tallies for row in tally.counts]
    totals = [total for tally in tallies for total in tally.totals]
    return tuple(
        LayerCount(
            layer=k,
            retention=share,
            tokens=mean([row[k] for row in counts]),
            promised=mean([share * total for total in totals]),
            worst=max(abs(row[k] - share * total) for row, total in zip(counts, totals)),
        )
        for k, share in enumerate(_promises(config))
    )


def _hold(config: PruningConfig, tallies: Sequence[Tally]) -> bool:
    shares = _promises(config)
    within = all(
        abs(count - share * total) <= images + 1e-6
        for tally in tallies
        for row, total, images in zip(tally.counts, tally.totals, tally.images)
        for count, share in zip(row, shares)
    )
    return within and all(tally.cache_fits for tally in tallies)
