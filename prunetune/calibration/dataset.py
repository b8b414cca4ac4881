"""Calibration samples: what one is, how a set is split, shuffled and identified."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from prunetune.calibration.pictures import Picture, Pictures, Source, pixel_digest
from prunetune.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One question about one or more pictures.

    Args:
        images: RGB images; from a source, a sequence that decodes an image when it is asked for.
        question: Plain text without image placeholders.
        answer: The expected answer; without one, accuracy is not measured on this sample.
        type: Kind of question, to slice results by.
        image_id: Samples with the same one land on the same side of a split.
        id: Unique within its source, and independent of the order of rows there.
    """

    images: Sequence[Image.Image]
    question: str
    answer: str | None = None
    type: str | None = None
    image_id: str = ""
    id: str = ""

    def digest(self) -> str:
        """Return the sha256 of the pixels and texts; ids and file names do not count."""
        return _sha256([self.pixels(), self.question, self.answer, self.type])

    def pixels(self) -> list[str]:
        """Return the sha256 of each picture's pixels."""
        if isinstance(self.images, Pictures):
            return [picture.sha256 for picture in self.images.pictures]
        return [pixel_digest(image) for image in self.images]


@dataclass(frozen=True)
class CalibrationSet:
    """Samples in the order in which a study uses them.

    Args:
        samples: The samples, shuffled once.
        skipped_names: One line for every picture or row that was left out as bad.
    """

    samples: tuple[Sample, ...]
    skipped_names: tuple[str, ...] = ()

    @property
    def skipped(self) -> int:
        """How many pictures or rows were left out as bad."""
        return len(self.skipped_names)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def limit(self, count: int) -> "CalibrationSet":
        """Return the first ``count`` samples (all of them where there are fewer)."""
        if count < 1:
            raise DataError(f"samples is {count}; allowed: 1 or more")
        return replace(self, samples=self.samples[:count])

    def digest(self) -> str:
        """Return the sha256 of the samples' pixels and texts, whatever their order."""
        return _sha256(sorted(sample.digest() for sample in self.samples))

    def order_digest(self) -> str:
        """Return the sha256 of the samples' pixels and texts, in their order."""
        return _sha256([sample.digest() for sample in self.samples])


@dataclass(frozen=True)
class Record:
    """A row of a source whose pictures were not decoded yet.

    Args:
        problem: Why the row cannot be a sample.
        split: ``"calibration"`` or ``"held_out"`` where the source says so, else None.
    """

    sources: tuple[Source, ...]
    question: str
    answer: str | None
    type: str | None
    image_id: str
    split: str | None = None
    problem: str | None = None

    def key(self) -> str:
        """Return a digest of what the row says, the same wherever in the file it stands."""
        return _sha256([self.image_id, self.question, self.answer, self.type])


def split_records(
    records: Sequence[Record], *, seed: int, held_out: float
) -> tuple[list[Record], list[Record]]:
    """Split by image into calibration and held-out rows; a split named by the source stands.

    An image's side depends on the seed and its id alone, so adding images moves no other one,
    except that a set of two or more images never leaves a side that was asked for empty.

    Raises:
        DataError: ``held_out`` is not in [0, 1), or an image is on both named sides.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}; allowed: 0 (none) up to, but not including, 1")
    if any(record.split for record in records):
        sides = (
            [r for r in records if r.split != "held_out"],
            [r for r in records if r.split == "held_out"],
        )
        _refuse_overlap(*({record.image_id for record in side} for side in sides))
        return sides
    ranked = sorted({record.image_id for record in records}, key=lambda image: _rank(seed, image))
    count = sum(_rank(seed, image) < int(held_out * 2**64) for image in ranked)
    if held_out and len(ranked) > 1:
        count = min(max(count, 1), len(ranked) - 1)
    elif len(ranked) == 1:
        count = 0
    chosen = set(ranked[:count])
    return (
        [record for record in records if record.image_id not in chosen],
        [record for record in records if record.image_id in chosen],
    )


def build(
    records: Sequence[Record], *, seed: int, limit: int | None = None, skip_bad: bool = False
) -> CalibrationSet:
    """Shuffle rows, decode their pictures and make a set of the first ``limit`` good ones.

    The order depends on the seed and the rows' contents, not on the order of files or lines.

    Raises:
        DataError: A picture is bad and ``skip_bad`` is false.
    """
    if limit is not None and limit < 1:
        raise DataError(f"samples is {limit}; allowed: 1 or more")
    samples: list[Sample] = []
    skipped: list[str] = []
    checked: dict[str, Picture | DataError] = {}
    ids: dict[str, int] = {}
    for key, record in sorted(
        ((record.key(), record) for record in records), key=lambda item: _sha256([seed, item[0]])
    ):
        if limit is not None and len(samples) == limit:
            break
        try:
            pictures = _check(record, checked)
        except DataError as error:
            if not skip_bad:
                raise
            skipped.append(str(error))
            continue
        name = f"{record.image_id}-{key[:8]}"
        ids[name] = ids.get(name, 0) + 1
        unique = name if ids[name] == 1 else f"{name}.{ids[name]}"
        texts = record.question, record.answer, record.type
        samples.append(Sample(Pictures(pictures), *texts, record.image_id, unique))
    return CalibrationSet(tuple(samples), tuple(dict.fromkeys(skipped)))


def _check(record: Record, checked: dict[str, Picture | DataError]) -> tuple[Picture, ...]:
    """Decode a row's pictures, each file once however many rows name it."""
    pictures = []
    for source in record.sources:
        if source.name not in checked:
            try:
                checked[source.name] = Picture.check(source)
            except DataError as error:
                checked[source.name] = error
        known = checked[source.name]
        if isinstance(known, DataError):
            raise known
        pictures.append(known)
    return tuple(pictures)


def _refuse_overlap(calibration: set[str], held_out: set[str]) -> None:
    if both := sorted(calibration & held_out):
        raise DataError(
            f"image {both[0]!r} is in both calibration and held_out ({len(both)} such image(s)); "
            f"results on held-out data would be worth nothing: keep each image on one side"
        )


def _rank(seed: int, image_id: str) -> int:
    return int(_sha256([seed, image_id])[:16], 16)


def _sha256(content: Sequence[object]) -> str:
    return hashlib.sha256(
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()
