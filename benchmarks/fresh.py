"""Fresh questions of the embedded model's generator: a seed that no other use has drawn from."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunetune.calibration import load_sides
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.scores import SampleScore, Scores, image_ids, measure
from prunetune.models.embedded import edition_of
from prunetune.space.space import Space
from prunetune.space.starts import UNTUNED, first_starts
from prunetune.study.outcome.noise import paired
from training.tiny.make_calibration import write_split


def fresh(
    evaluator: Evaluator, seed: int, pictures: int | None = None, kind: str | None = None
) -> Evaluator:
    """Return what measures on a fresh set like the held-out one, with the same model.

    ``kind`` of pictures: by default the model's own.
    """
    kind = kind or kind_of(evaluator.loaded.name)
    with tempfile.TemporaryDirectory(prefix="prunetune-fresh-") as folder:
        write_split("held_out", Path(folder), pictures, seed, kind)
        return Evaluator(evaluator.loaded, load_sides("tiny", folder)[1], deepest=1)


def kind_of(model: str) -> str:
    """Return the kind of pictures that an embedded model is asked about."""
    return "plain" if edition_of(model) == 1 else "busy"


def covering(space: Space) -> PruningConfig:
    """Return the untuned set that was the best of all known before searches had selectors."""
    return space.decode(first_starts(space)[UNTUNED])


def compared(config: PruningConfig, space: Space, unseen: Evaluator) -> dict[str, Any]:
    """Return scores on a fresh set, and the difference in accuracy to the untuned set's.

    The difference is paired by sample, its standard error is over pictures.
    """
    ours, theirs = measure(unseen, config), measure(unseen, covering(space))
    right = [[float(bool(r.correct)) for r in results] for results in (ours, theirs)]
    more, error = paired(right[0], right[1], image_ids(unseen.samples))
    return {**_of(ours), "untuned": _of(theirs), "more": more, "error": error}


def _of(results: list[SampleScore]) -> dict[str, Any]:
    return asdict(Scores.of(results))
