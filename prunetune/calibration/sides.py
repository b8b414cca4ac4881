"""Calibration and held-out samples of one source, or of one source each."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunetune.calibration.dataset import CalibrationSet, TemplateArgs, build
from prunetune.calibration.drawing import draw
from prunetune.calibration.looks import Gallery
from prunetune.calibration.reading import Reading
from prunetune.calibration.records import Record
from prunetune.calibration.sources import read_source
from prunetune.calibration.splitting import Sides, split_as_before, split_records
from prunetune.errors import DataError

logger = logging.getLogger(__name__)

HELD_OUT = 0.25


@dataclass(frozen=True)
class _How:
    """What both sources of a study are read by."""

    seed: int
    skip_bad: bool
    template: TemplateArgs
    remote: bool
    as_before: bool
    gallery: Gallery


def load_calibration(
    spec: str,
    *,
    skip_bad: bool = False,
    seed: int = 0,
    samples: int | None = None,
    held_out: float = HELD_OUT,
    held_out_samples: int | None = None,
    template: Mapping[str, Any] | None = None,
    allow_remote: bool = False,
    as_before: bool = False,
) -> tuple[CalibrationSet, CalibrationSet]:
    """Load a calibration set and its held-out counterpart.

    Args:
        spec: ``tiny`` (shipped), a folder of pictures with or without ``metadata.jsonl``, zipped or
            not, a ``.jsonl`` or ``.json`` file whose pictures lie beside it (also requests in
            OpenAI's form and other conversations), or ``hf:ID``, a data set of the Hugging Face hub
            or a local folder or file that ``datasets`` can load. Options follow a question mark:
            ``?question=...`` is asked where a row has no question; ``hf:`` also takes split,
            held_out_split, image, answer, type, image_id, config, revision and default_question.
        skip_bad: Leave out bad pictures and rows, named in ``skipped_names`` (rows in those of the
            calibration side), instead of failing.
        seed: Decides the split by picture and the order of samples.
        samples: At most so many calibration samples.
        held_out: Share of the rows that is held out, in [0, 1); unused where the source names
            its splits, as folders ``calibration`` and ``held_out`` do.
        held_out_samples: At most so many held-out samples.
        template: Options of the model's chat template.
        allow_remote: Fetch pictures that rows name by ``http:`` URLs.
        as_before: Split and read as releases up to 0.1 did, whose splits go by names.

    Returns:
        Both sides. No picture of one is in the other, nor a near duplicate of it.

    Raises:
        DataError: The source or one of its samples cannot be used, or a side is left empty.
    """
    how = _How(seed, skip_bad, options_of(template), allow_remote, as_before, Gallery())
    return _load(spec, how, samples=samples, held_out=held_out, held_out_samples=held_out_samples)


def load_sides(
    source: str,
    held_out: str | None = None,
    *,
    seed: int = 0,
    samples: int | None = None,
    held_out_samples: int | None = None,
    skip_bad: bool = False,
    template: Mapping[str, Any] | None = None,
    allow_remote: bool = False,
    wanted: str | None = None,
    as_before: bool = False,
) -> tuple[CalibrationSet, CalibrationSet]:
    """Load calibration samples and held-out ones on other pictures.

    Args:
        source: As ``load_calibration`` takes it.
        held_out: Another source, whose samples are all held out, while all of ``source`` is
            calibration data; None for a share of ``source``'s pictures.
        seed: Decides the split by picture and the order of samples.
        samples: At most so many calibration samples.
        held_out_samples: At most so many held-out samples.
        skip_bad: Leave out bad pictures and rows instead of failing.
        template: Options of the model's chat template.
        allow_remote: Fetch pictures that rows name by ``http:`` URLs.
        wanted: Digest of the calibration samples that a study has; where only the split of an older
            release gives them, that one is taken, and said.
        as_before: Split and read as releases up to 0.1 did.

    Raises:
        DataError: A source or one of its samples cannot be used, a side is empty, or all held-out
            pictures are calibration pictures.
    """

    def load(before: bool) -> tuple[CalibrationSet, CalibrationSet]:
        how = _How(seed, skip_bad, options_of(template), allow_remote, before, Gallery())
        bounds = {"samples": samples, "held_out_samples": held_out_samples}
        if held_out is None:
            return _load(source, how, held_out=HELD_OUT, **bounds)
        calibration, _ = _load(source, how, held_out=0.0, **bounds)
        other, _ = _load(held_out, how, held_out=0.0, drawn=held_out_samples)
        return calibration, _unseen(calibration, other, how)

    found = load(as_before)
    if wanted is None or as_before or found[0].digest() == wanted:
        return found
    try:
        older = load(True)
    except DataError:
        return found
    if older[0].digest() != wanted:
        return found
    logger.warning(
        "%s is split by names, as the study that uses it was begun: copies of a picture may be on "
        "both sides; a new search (--out) splits by pixels",
        source,
    )
    return older


def options_of(template: Mapping[str, Any] | None) -> TemplateArgs:
    """Return options of a chat template in their fixed order."""
    return tuple(sorted((template or {}).items()))


def _load(
    spec: str,
    how: _How,
    *,
    held_out: float,
    samples: int | None = None,
    held_out_samples: int | None = None,
    drawn: int | None = None,
) -> tuple[CalibrationSet, CalibrationSet]:
    reading = Reading(how.remote, how.as_before)
    records, problems = _usable(read_source(spec, reading), how)
    records = draw(records, drawn, how.seed)
    records, held_out = _drawn(records, how, held_out, samples, held_out_samples)
    named = any(record.split for record in records)
    if how.as_before:
        sides = split_as_before(records, seed=how.seed, held_out=held_out)
    else:
        sides = _split(records, how, held_out, look=bool(held_out) and not named)
    # Of a picture's samples all are held out or none: they share what it says of a config.
    sides = replace(sides, held_out=draw(sides.held_out, held_out_samples, how.seed))
    calibration, held = (
        build(
            rows, seed=how.seed, limit=limit, skip_bad=how.skip_bad, gallery=how.gallery,
            template=how.template,
        )
        for rows, limit in ((sides.calibration, samples), (sides.held_out, held_out_samples))
    )  # fmt: skip
    notes = [*reading.notes, *_said(sides, reading)]
    for note in notes:
        logger.warning("%s", note)
    skipped = (*problems, *calibration.skipped_names)
    calibration = replace(calibration, skipped_names=skipped, notes=tuple(notes))
    about = (
        f"calibration source {spec!r}: {len(records)} usable row(s) on "
        f"{len({record.image_id for record in records})} image(s)"
    )
    _refuse_empty(about, "calibration", calibration)
    if held_out > 0 or sides.held_out:
        _refuse_empty(about, "held_out", held)
    if named and not how.as_before:
        held = _unseen(calibration, held, how)
    return calibration, held


_SPARE = 1.25
"""Rows that are looked at for each that is asked for: groups of rows are not cut to measure."""


def _drawn(
    records: list[Record],
    how: _How,
    held_out: float,
    samples: int | None,
    held_out_samples: int | None,
) -> tuple[list[Record], float]:
    """Return the rows to look at, and the share to hold out.

    To split by picture every picture is decoded. Where both sides are bounded, so is what is
    decoded: the split is then made of rows that are drawn first.
    """
    if samples is None or held_out_samples is None or how.as_before or not held_out:
        return records, held_out
    wanted = int(_SPARE * (samples + held_out_samples)) + 1
    if any(record.split for record in records) or len(records) <= max(wanted, _FEW):
        return records, held_out
    drawn = draw(records, wanted, how.seed)
    return drawn, min(0.9, held_out_samples / (samples + held_out_samples))


_FEW = 2000
"""Up to so many rows all pictures are looked at: a split is then the same for every bound."""


def _usable(rows: Iterable[Record], how: _How) -> tuple[list[Record], list[str]]:
    """Return the rows that can be samples, and why others cannot."""
    records: list[Record] = []
    problems: list[str] = []
    for record in rows:
        if record.problem is None:
            records.append(record)
        elif how.skip_bad:
            problems.append(record.problem)
        else:
            raise DataError(f"{record.problem}, or skip bad rows with --skip-bad")
    return records, problems


def _split(records: list[Record], how: _How, held_out: float, *, look: bool) -> Sides:
    if not look:
        return split_records(records, seed=how.seed, held_out=held_out)
    pictures = [_digests(record, how.gallery) for record in records]
    near = how.gallery.near(digest for row in pictures for digest in row)
    return split_records(records, seed=how.seed, held_out=held_out, pictures=pictures, near=near)


def _digests(record: Record, gallery: Gallery) -> set[str]:
    """Return the digests of a row's pictures; a bad one is refused when it is used."""
    found = set()
    for source in record.sources:
        try:
            found.add(gallery.look(source).picture.sha256)
        except DataError:
            found.add(f"bad {source.name}")
    return found


def _said(sides: Sides, reading: Reading) -> list[str]:
    notes = []
    if reading.tools:
        notes.append(f"tools of {reading.tools} conversation(s) are left out: a prompt has none")
    if sides.left_out:
        count = len(sides.left_out) + len(sides.calibration) + len(sides.held_out)
        notes.append(
            f"{len(sides.left_out)} of {count} samples are left out: they join pictures of both "
            "sides, in a group of samples on common pictures that is more than the share to hold "
            "out"
        )
    return notes


def _refuse_empty(about: str, name: str, side: CalibrationSet) -> None:
    if not side.samples:
        raise DataError(
            f"{about} leave no {name} samples ({side.skipped} skipped); add pictures (a held-out "
            f"share needs two good ones that share no sample), or hold out nothing with held_out=0"
        )


def _unseen(calibration: CalibrationSet, held_out: CalibrationSet, how: _How) -> CalibrationSet:
    """Return the held-out samples without those whose pictures a search sees."""
    seen = {picture for sample in calibration for picture in sample.pixels()}
    shown = [set(sample.pixels()) for sample in held_out]
    near = set()
    if not how.as_before:
        for pair in how.gallery.near({*seen, *(p for row in shown for p in row)}):
            near |= set(pair) - seen if seen & set(pair) else set()
    unseen = tuple(
        sample
        for sample, row in zip(held_out, shown, strict=True)
        if row.isdisjoint(seen) and row.isdisjoint(near)
    )
    if not unseen:
        raise DataError(
            f"held_out: all {len(held_out)} samples show pictures of the calibration data, so "
            "results on them would be worth nothing; give other pictures, or leave --held-out out"
        )
    if len(unseen) < len(held_out):
        logger.warning(
            "%d of %d held-out samples show pictures of the calibration data, or near duplicates "
            "of them, and are left out",
            *(len(held_out) - len(unseen), len(held_out)),
        )
    return replace(held_out, samples=unseen)
