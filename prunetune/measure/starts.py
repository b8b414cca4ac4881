"""Where trials start: references of full pictures, and of smaller ones for each level of pixels."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from prunetune.measure.answering import Judge
from prunetune.measure.levels import References, Room, Split
from prunetune.measure.own import answer_kl, followed_by_own
from prunetune.measure.reference import Reference
from prunetune.measure.results import SampleResult, compare
from prunetune.pixels import Pixels
from prunetune.pixels.processors import at_level


@dataclass(frozen=True)
class Drawn:
    """One sample of a trial.

    Attributes:
        full: What it is compared with: unpruned, of the full picture.
        start: What it starts from: of the picture at the config's level, its expected answer
            behind; at the full level ``full`` itself.
        own: The same with the unpruned model's own answer behind; None where nobody asks.
    """

    full: Reference
    start: Reference
    own: Reference | None = None

    def begun(self, own: bool) -> Reference:
        """Return what a run starts from that follows the model's own answer, or the expected."""
        return self.own if own and self.own is not None else self.start


class Starts:
    """The references of a split at every level, each computed when it is first asked for.

    Args:
        split: What is run.
        room: Where references are kept; of smaller pictures a quarter of the memory.
        progress: Called with the number of samples of the full pictures that are done.
    """

    def __init__(self, split: Split, room: Room, progress: Callable[[int], None]) -> None:
        self.split, self.room = split, room
        self.full = References(split, split.loaded.processor, room, progress=progress)
        self._smaller: dict[tuple[str, bool], References] = {}

    def at(self, pixels: Pixels | None, *, own: bool = False) -> References:
        """Return the references of a level: one vision pass a picture, the first time.

        Args:
            pixels: Of a config.
            own: With the full picture's own answers behind the prompts; below it only.
        """
        if pixels is None or not pixels.shrinks:
            return self.full
        name = pixels.key, own
        if name not in self._smaller:
            given = self._own_answers() if own else None
            key = {"pixels": pixels.key, "given": self.split.own if own else 0}
            kind = self.split.family.config.model_type
            self._smaller[name] = References(
                # Nobody asks what the model itself would have said of a smaller picture, nor
                # whether that is right.
                replace(self.split, own=0, match="exact"),
                at_level(self.split.loaded.processor, pixels, kind),
                replace(self.room, in_memory=self.room.in_memory // 4),
                given=given,
                key=key,
            )
        return self._smaller[name]

    def judge(self, pixels: Pixels | None) -> Judge:
        """Return what judges the answers to pictures of a level."""
        return self.split.judge(self.at(pixels).processor)

    def _own_answers(self) -> list[list[int]]:
        every = (self.full.get(index).own for index in range(len(self.split.samples)))
        return [[] if one is None else one.ids for one in every]

    def draw(self, pixels: Pixels | None, first_layer: int, index: int) -> Drawn:
        """Return what a sample starts from and is compared with.

        Args:
            pixels: Of the config.
            first_layer: Of its first stage.
            index: Of the sample.
        """
        level, full = self.at(pixels), self.full.get(index)
        start = full if level is self.full else level.get(index)
        if not self.split.own:
            return Drawn(full, start)
        if level is self.full:
            return Drawn(full, full, followed_by_own(full, first_layer))
        return Drawn(full, start, self.at(pixels, own=True).get(index))

    def unstaged(self, drawn: Drawn, *, answers: bool) -> SampleResult:
        """Return what smaller pictures alone do to a sample: nothing is run for it.

        Args:
            drawn: The sample.
            answers: Whether the expected answer is checked.
        """
        family, device = self.split.family, self.split.device

        def compared(start: Reference, answer: list[int] | None) -> tuple[SampleResult, Tensor]:
            tail = start.tail[None, : 1 + len(answer or [])].to(device)
            logits = family.logits(tail).float()
            return compare(tail, logits, [drawn.full], [answer], self.split.eos)[0], logits

        found, _ = compared(drawn.start, drawn.start.answer if answers else None)
        if drawn.own is None:
            return found
        along, logits = compared(drawn.own, drawn.own.answer)
        kl = answer_kl(family, logits, [drawn.full])[0]
        return replace(along, kl_answer=kl, correct=found.correct, begun=found.begun)
