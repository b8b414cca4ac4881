"""The samples that a config changes most: what was asked, what was seen, what was answered."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from prunetune.calibration import CalibrationSet, Sample, greedy_answer
from prunetune.config import PruningConfig
from prunetune.errors import DataError
from prunetune.review.facts import StudyFacts
from prunetune.review.pictures.overlay import fitted, kept_panel, kept_tokens
from prunetune.runtime.apply import apply

_NEW_TOKENS = 32
_WEBP_SIDE = 16383
_QUALITY = 82
_LONGEST = 2000
_HIDDEN = "A conversation, which may be somebody's: prunetune report --show-samples shows it."


@dataclass(frozen=True)
class Panel:
    """One picture of a sample.

    Attributes:
        caption: What it shows.
        source: A ``data:`` URI.
        width: Pixels.
        height: Pixels.
    """

    caption: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Worst:
    """One sample.

    Attributes:
        index: Its place in the split.
        split: ``held-out`` or ``calibration``.
        figures: What the config did to it, as (name, text).
        id: As its source names it; empty where it is not known.
        type: Kind of question.
        question: The prompt; None where the data is gone.
        expected: The expected answer.
        pruned: The answer with pruning; None where the model was not run.
        unpruned: The answer without pruning.
        panels: The picture, then what every stage keeps of it.
        note: Why something is missing.
    """

    index: int
    split: str
    figures: tuple[tuple[str, str], ...]
    id: str = ""
    type: str | None = None
    question: str | None = None
    expected: str | None = None
    pruned: str | None = None
    unpruned: str | None = None
    panels: tuple[Panel, ...] = ()
    note: str = ""


def worst_samples(facts: StudyFacts, count: int = 8) -> list[Worst]:
    """Return the samples with the largest gap, the largest first, from the study alone.

    Held-out ones where the search has measured them, else calibration samples of the best trial.
    """
    if facts.detail is not None:
        return [_recorded(facts.detail, k) for k in range(min(count, len(facts.detail["worst"])))]
    best = facts.best
    if best is None:
        return []
    order = sorted(best.samples.items(), key=lambda item: -item[1])[:count]
    name = facts.axis()
    return [Worst(i, "calibration", ((name, f"{value:.4f}"),)) for i, value in order]


def _recorded(record: Any, place: int) -> Worst:
    asked, samples, tuned = record["worst"][place], record["samples"], record["configs"]["tuned"]
    i = asked["index"]
    figures = [("gap", f"{tuned['gap'][i]:.4f}"), ("KL", f"{tuned['kl'][i]:.3f} nats")]
    figures.append(("most likely next token", "the same" if tuned["agrees"][i] else "another one"))
    return Worst(
        index=i,
        split="held-out",
        figures=tuple(figures),
        id=samples["id"][i],
        type=samples["type"][i],
        question=asked["question"][:_LONGEST],
        expected=asked["answer"],
    )


def measured_part(facts: StudyFacts, held_out: CalibrationSet) -> CalibrationSet:
    """Return the held-out samples that a study measured: all, or those it had time for."""
    if facts.record is None:
        return held_out
    known = {sample.id: sample for sample in held_out}
    ids = facts.record["samples"]["id"]
    return replace(held_out, samples=tuple(known[name] for name in ids if name in known))


def check_data(facts: StudyFacts, calibration: CalibrationSet, held_out: CalibrationSet) -> None:
    """Refuse data that is not what the study measured.

    Raises:
        DataError: The samples are others by now.
    """
    if facts.detail is not None:
        same = [s.id for s in held_out] == list(facts.detail["samples"]["id"])
        name = "held-out"
    else:
        same = calibration.digest() == facts.attrs.get("digest")
        name = "calibration"
    if not same:
        raise DataError(
            f"the {name} samples of {facts.spec.data or 'tiny'!r} are no longer those that the "
            "study measured"
        )


def with_pictures(
    found: Sequence[Worst],
    loaded: Any,
    config: PruningConfig,
    calibration: CalibrationSet,
    held_out: CalibrationSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
    show_samples: bool = False,
) -> list[Worst]:
    """Return samples with their pictures, kept tokens and answers.

    Args:
        found: From ``worst_samples``.
        loaded: ``prunetune.models.LoadedModel``.
        config: What pruned them.
        calibration: Calibration split.
        held_out: Held-out split.
        progress: Called with how many are done, and of how many.
        show_samples: Show conversations, too; without, neither their texts nor their pictures.
    """
    out = []
    for k, entry in enumerate(found):
        side = held_out if entry.split == "held-out" else calibration
        sample = side[entry.index]
        hidden = sample.private and not show_samples
        if hidden:
            out.append(replace(entry, id=sample.id, type=sample.type, note=_HIDDEN))
        else:
            out.append(_shown(entry, sample, loaded, config))
        progress(k + 1, len(found))
    return out


def _shown(entry: Worst, sample: Sample, loaded: Any, config: PruningConfig) -> Worst:
    images = list(sample.images)
    pruned, unpruned = _answers(loaded, config, sample)
    panels, note = _panels(images, sample, loaded, config)
    return replace(
        entry,
        id=sample.id,
        type=sample.type,
        question=_asked(sample)[:_LONGEST],
        expected=sample.answer,
        pruned=pruned,
        unpruned=unpruned,
        panels=tuple(panels),
        note=note,
    )


def _asked(sample: Sample) -> str:
    """Return what is asked: of a conversation all turns, pictures where they stand."""
    if not sample.turns:
        return sample.question
    said = [
        (t.role, " ".join("[picture]" if p is None else p for p in t.parts)) for t in sample.turns
    ]
    return "\n".join(f"{role}: {text}" for role, text in said)


def _panels(
    images: list[Image.Image], sample: Sample, loaded: Any, config: PruningConfig
) -> tuple[list[Panel], str]:
    if len(images) != 1 or sample.turns:
        shown = [_panel(f"picture {k + 1}", fitted(image)) for k, image in enumerate(images)]
        return shown, "Kept tokens are drawn for a question about one picture only."
    picture = fitted(images[0])
    kept = kept_tokens(loaded, config, images[0], sample.question)
    panels = [_panel(f"the picture: {len(kept.geometry)} image tokens", picture)]
    for stage in kept.stages:
        for name, member in kept.views():
            drawn = kept_panel(picture, kept.geometry, member, stage.kept)
            count = f"{int((member & stage.kept).sum())} of {int(member.sum())}"
            panels.append(_panel(f"layer {stage.layer}, {name}: {count} kept", drawn))
    return panels, ""


def _panel(caption: str, image: Image.Image) -> Panel:
    buffer = io.BytesIO()
    # WebP knows no longer side.
    kind = "webp" if max(image.size) <= _WEBP_SIDE else "png"
    image.convert("RGB").save(buffer, format=kind.upper(), quality=_QUALITY)
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Panel(caption, source, image.width, image.height)


def _answers(loaded: Any, config: PruningConfig, sample: Sample) -> tuple[str, str]:
    """Return the greedy answers with and without pruning."""
    unpruned = greedy_answer(loaded, sample, _NEW_TOKENS)
    with apply(loaded.model, config, processor=loaded.processor):
        return greedy_answer(loaded, sample, _NEW_TOKENS), unpruned
