"""What a search ended with, kept in its study: held-out figures, sample by sample.

A page about a study is then made from the study alone, wherever its database is.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna import Study
from optuna.exceptions import OptunaError

from prunetune.calibration import Sample
from prunetune.measure.scores import Measures, SampleScore, image_ids
from prunetune.study.outcome.front_summary import Point
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.outcome.summary import Baseline, SearchResult

logger = logging.getLogger(__name__)

KEY, FRONT = "record", "front_record"
_VERSION = 1
_WORST = 16


def write_record(
    study: Study,
    result: SearchResult,
    trial: int,
    held_out: Measures,
    configs: Mapping[str, Sequence[SampleScore]],
    seed: int,
) -> None:
    """Store what a search ended with as an attribute of its study.

    Args:
        study: With all its trials.
        result: What the search returns.
        trial: Number of the trial that is exported.
        held_out: The split that was measured.
        configs: Results on it by name: ``tuned`` and every preset that could be run.
        seed: Of the intervals.
    """
    data = {
        **_head(study),
        "trial": trial,
        "config": result.best.model_dump(mode="json"),
        "result": {k: v for k, v in result.to_dict().items() if k not in ("config", "report")},
        "differences": _differences(result.baselines),
        **_by_sample(held_out, configs, seed),
    }
    _keep(study, KEY, data)


def write_front(
    study: Study,
    result: Mapping[str, Any],
    held_out: Measures,
    shown: tuple[Point, Mapping[str, Sequence[SampleScore]]] | None,
    seed: int,
) -> None:
    """Store what a search for a front ended with.

    Args:
        study: With all its trials.
        result: As ``search --json`` prints it.
        held_out: The split that was measured.
        shown: The point that the verdict is about, and results on the split by name; None where
            nothing was measured.
        seed: Of the intervals.
    """
    data = {**_head(study), "result": {k: v for k, v in result.items() if k != "report"}}
    if shown is not None:
        point, configs = shown
        data |= {"trial": point.trial, "config": point.config.model_dump(mode="json")}
        data["differences"] = _differences(point.baselines)
        data |= _by_sample(held_out, configs, seed)
    _keep(study, FRONT, data)


def _head(study: Study) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": sum(t.state.is_finished() for t in study.get_trials(deepcopy=False)),
    }


def _differences(baselines: Sequence[Baseline]) -> dict[str, Any]:
    """Return by how much the tuned config's gap is below each one's, over the same samples."""
    return {
        b.name: {"gap_difference": b.gap_difference, "p_value": b.p_value}
        for b in baselines
        if b.scores is not None
    }


def _by_sample(
    held_out: Measures, configs: Mapping[str, Sequence[SampleScore]], seed: int
) -> dict[str, Any]:
    """Return what each config did to each sample, and what the samples are."""
    samples, images = held_out.samples, image_ids(held_out.samples)
    first = {image: i for i, image in reversed(list(enumerate(images)))}
    return {
        "intervals": {
            name: bootstrap_ci([r.gap for r in results], images, seed)
            for name, results in configs.items()
        },
        "samples": {
            "id": [str(getattr(s, "id", "")) for s in samples],
            "type": [getattr(s, "type", None) for s in samples],
            # Which are about one picture: the first one's place.
            "picture": [first[image] for image in images],
            "unpruned": list(held_out.unpruned_correct),
        },
        "configs": {name: _columns(results) for name, results in configs.items()},
        "worst": _worst(samples, configs["tuned"]),
    }


def _keep(study: Study, key: str, data: Mapping[str, Any]) -> None:
    try:
        study.set_user_attr(key, data)
    except OptunaError as error:
        # The config is written and the result is returned; only a later report shows less.
        logger.warning("the study does not keep its held-out figures: %s", error)


def read_record(attrs: Mapping[str, Any], key: str = KEY) -> Mapping[str, Any] | None:
    """Return what was stored under a key, or None where there is nothing this release reads."""
    data = attrs.get(key)
    known = isinstance(data, dict) and data.get("version") == _VERSION
    return data if known else None


def _columns(results: Sequence[SampleScore]) -> dict[str, list[Any]]:
    along = [r.kl_answer for r in results if r.kl_answer is not None]
    asked = {"kl_answer": [float(f"{value:.6g}") for value in along]} if along else {}
    return asked | {
        "gap": [float(f"{r.gap:.6g}") for r in results],
        "kl": [float(f"{r.kl:.6g}") for r in results],
        "agrees": [int(r.agrees) for r in results],
        "correct": [None if r.correct is None else int(r.correct) for r in results],
    }


def _worst(samples: Sequence[Any], results: Sequence[SampleScore]) -> list[dict[str, Any]]:
    """Return what is asked in the samples with the largest gap: the data may go, a study stays."""
    order = sorted(range(len(results)), key=lambda i: -results[i].gap)
    # Nothing of a conversation goes into a database.
    samples = [sample.shown() if isinstance(sample, Sample) else sample for sample in samples]
    return [
        {
            "index": i,
            "question": str(getattr(samples[i], "question", "")),
            "answer": getattr(samples[i], "answer", None),
        }
        for i in order[:_WORST]
    ]
