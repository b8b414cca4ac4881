"""Calibration samples: what one is, how a set is shuffled and identified."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from prunetune.calibration.dialogues import Turn
from prunetune.calibration.looks import Gallery
from prunetune.calibration.pictures import Pictures, pixel_digest
from prunetune.calibration.records import Record, sha256, spoken
from prunetune.errors import DataError

TemplateArgs = tuple[tuple[str, str | int | float | bool | None], ...]


@dataclass(frozen=True)
class Sample:
    """One question about one or more pictures.

    Args:
        images: RGB images; from a source, a sequence that decodes an image when it is asked for.
        question: Plain text without image placeholders; of a conversation the last user's.
        answer: The expected answer; without one, accuracy is not measured on this sample.
        type: Kind of question, to slice results by.
        image_id: Samples with the same one land on the same side of a split.
        id: Unique within its source, and independent of the order of rows there.
        also: Further right answers.
        turns: A conversation, pictures where they stand; empty: one turn, pictures first.
        template: Options of the model's chat template, by name.
        place: Where it stands in its source, for messages.
    """

    images: Sequence[Image.Image]
    question: str
    answer: str | None = None
    type: str | None = None
    image_id: str = ""
    id: str = ""
    also: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    template: TemplateArgs = ()
    place: str = field(default="", compare=False)

    @property
    def private(self) -> bool:
        """Whether it is a conversation, which may be somebody's: shown where asked for only."""
        return bool(self.turns)

    def shown(self) -> "Sample":
        """Return what may be shown unasked: of a conversation neither texts nor pictures."""
        if not self.private:
            return self
        return Sample((), "", type=self.type, image_id=self.image_id, id=self.id)

    def digest(self) -> str:
        """Return the sha256 of the pixels and texts; ids and file names do not count."""
        said: list[object] = [self.pixels(), self.question, self.answer, self.type]
        if self.turns or self.template:
            said += [spoken(self.turns), [list(option) for option in self.template]]
        return sha256(said)

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
        notes: What else a person should know about how the data was read, a line each.
    """

    samples: tuple[Sample, ...]
    skipped_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        return sha256(sorted(sample.digest() for sample in self.samples))

    def order_digest(self) -> str:
        """Return the sha256 of the samples' pixels and texts, in their order."""
        return sha256([sample.digest() for sample in self.samples])


def build(
    records: Sequence[Record],
    *,
    seed: int,
    limit: int | None = None,
    skip_bad: bool = False,
    gallery: Gallery | None = None,
    template: TemplateArgs = (),
) -> CalibrationSet:
    """Shuffle rows, decode their pictures and make a set of the first ``limit`` good ones.

    The order depends on the seed and the rows' contents, not on the order of files or lines.

    Args:
        records: Rows that can be used.
        seed: Decides the order.
        limit: At most so many samples.
        skip_bad: Leave out rows with bad pictures.
        gallery: Has decoded some of the pictures already.
        template: Options of the chat template.

    Raises:
        DataError: A picture is bad and ``skip_bad`` is false.
    """
    if limit is not None and limit < 1:
        raise DataError(f"samples is {limit}; allowed: 1 or more")
    samples: list[Sample] = []
    skipped: list[str] = []
    gallery = gallery or Gallery()
    ids: dict[str, int] = {}
    for key, record in sorted(
        ((record.key(), record) for record in records), key=lambda item: sha256([seed, item[0]])
    ):
        if limit is not None and len(samples) == limit:
            break
        try:
            pictures = tuple(gallery.look(source).picture for source in record.sources)
        except DataError as error:
            if not skip_bad:
                raise
            skipped.append(str(error))
            continue
        name = f"{record.image_id}-{key[:8]}"
        ids[name] = ids.get(name, 0) + 1
        unique = name if ids[name] == 1 else f"{name}.{ids[name]}"
        samples.append(
            Sample(
                Pictures(pictures),
                record.question,
                record.answer,
                record.type,
                record.image_id,
                unique,
                also=record.also,
                turns=record.turns,
                template=template,
                place=record.place,
            )
        )
    return CalibrationSet(tuple(samples), tuple(dict.fromkeys(skipped)))
