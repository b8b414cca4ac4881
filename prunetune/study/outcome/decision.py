"""What to ship: the cheapest point of a front that keeps its promise on held-out data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from prunetune.errors import StudyError
from prunetune.measure.scores import Measures, SampleScore, accuracy, image_ids
from prunetune.promise import Promise
from prunetune.provenance import Judged
from prunetune.study.outcome.promise import (
    NO_ANSWERS,
    Loses,
    Tested,
    in_sequence,
    knee,
    losses,
    lost,
)
from prunetune.study.outcome.verdict import accuracy_lost, problem_words, rest, savings
from prunetune.study.trials.best import cost_of, metric_of, spread

CANDIDATES = 12
"""Points of a front that are tested at most: evenly spread, the ends among them."""


@dataclass(frozen=True)
class Decision:
    """What a search with a promise ends with.

    Attributes:
        promise: What may be lost.
        tested: Candidates in the order they were tested, safest first; the last one failed, or
            there was none left.
        trial: The one to ship; None where not even the safest keeps the promise.
        knee: Trial at the front's bend by calibration data, for whom no promise binds.
        unpruned_accuracy: On the held-out split.
        candidates: How many there were.
    """

    promise: Promise
    tested: tuple[Tested, ...]
    trial: int | None
    knee: int
    unpruned_accuracy: float | None
    candidates: int

    def shipped(self) -> Tested | None:
        """Return the test of the one to ship."""
        return next((one for one in self.tested if one.trial == self.trial), None)

    def words(self, cost: str, judged: Judged | None) -> str:
        """Return the decision in words.

        Args:
            cost: What the second objective is called.
            judged: What the one to ship is worth; None where there is none.
        """
        shown, ship = self.promise.shown, self.shipped()
        if ship is None or judged is None:
            return self._nothing(cost)
        where = f"trial {ship.trial} ({cost} {ship.cost:.4g})"
        # Whoever promises a gap may keep it with a config that answers nothing right.
        first = f"T{where[1:]} keeps the promise." if judged.problem else f"Ship {where}."
        said = [
            *problem_words(judged),
            f"{first} Against unpruned it {self._loses(ship.loses)}, and {savings(judged)}.",
        ]
        right = judged.unpruned.accuracy
        if self.promise.loss != "accuracy" and right is not None and not judged.problem:
            said.append(f"It {accuracy_lost(right)}.")
        last = self.tested[-1]
        if not last.passed:
            said.append(
                f"The next cheaper one, trial {last.trial} ({cost} {last.cost:.4g}), may lose "
                f"{shown(last.loses.bound)}."
            )
        elif len(self.tested) == self.candidates:
            said.append("It is the cheapest of the front.")
        return " ".join([*said, *rest(judged)])

    def _loses(self, loses: Loses) -> str:
        """Return what is lost, and the bound that the promise is held against."""
        most = f"at most {self.promise.shown(loses.bound)} with 95% confidence"
        if self.promise.loss == "accuracy" and loses.mean < 0:
            most = f"and loses {most}"
        if self.promise.loss == "accuracy":
            loss = accuracy_lost(loses.within(self.unpruned_accuracy))
            return f"{loss}{' ' if loses.mean < 0 else ', '}{most}"
        shown = self.promise.shown
        what = "has a gap of" if self.promise.loss == "gap" else "gives another next token on"
        low, high = loses.within(None if self.promise.loss == "gap" else 1.0).interval
        return f"{what} {shown(loses.mean)} ({shown(low)} to {shown(high)}), {most}"

    def _nothing(self, cost: str) -> str:
        if not self.tested:
            return "Nothing to ship: no config of the front could be measured on held-out data."
        safest = self.tested[0]
        loses, needed = safest.loses, safest.loses.needed(self.promise.most)
        enough = (
            "more pictures would not help: search at a larger cost, or promise less"
            if needed is None
            else f"about {needed} held-out pictures would tell ({loses.pictures} are there)"
        )
        return (
            f"Nothing to ship: no config of the front {self.promise.words} with 95% confidence. "
            f"Against unpruned the safest, trial {safest.trial} ({cost} {safest.cost:.4g}), "
            f"{self._loses(loses)}; {enough}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what ``search --json`` prints."""
        ship = self.shipped()
        return {
            "promise": self.promise.model_dump(mode="json"),
            "cheapest": self.promise.cheapest,
            "kept": ship is not None,
            "trial": self.trial,
            "cost": ship and ship.cost,
            "loses": ship and ship.loses.to_dict(),
            "room": ship and self.promise.most - ship.loses.bound,
            "tested": [one.to_dict() for one in self.tested],
            "candidates": self.candidates,
            "knee": self.knee,
        }


def check_promise(promise: Promise, held_out: Measures) -> None:
    """Refuse before minutes are spent what held-out data cannot tell.

    Raises:
        StudyError: No sample has an answer, the unpruned model gives none of them, or there are
            too few samples even for a config that loses nothing.
    """
    answered = [right for right in held_out.unpruned_correct if right is not None]
    if promise.loss == "accuracy" and answered and not any(answered):
        raise StudyError(
            f"a promise about accuracy: the unpruned model gives none of {len(answered)} expected "
            "answers, so the data or the form of its answers is wrong; look at them with: "
            "prunetune data check"
        )
    check_enough(promise, held_out.samples, bool(answered))


def check_enough(promise: Promise, samples: Sequence[Any], answered: bool) -> None:
    """Refuse before anything runs samples that are too few even for a config that loses nothing.

    Args:
        promise: What may be lost.
        samples: The held-out ones.
        answered: Whether any of them has an answer.

    Raises:
        StudyError: They are, or a promise is about answers and they have none.
    """
    if promise.loss == "accuracy" and not answered:
        raise StudyError(NO_ANSWERS)
    images = image_ids(samples)
    nothing = lost([0.0] * len(images), images)
    if promise.most > 0 and nothing.bound > promise.most:
        # Without any loss the error falls as one over the samples.
        needed = -(-len(images) * nothing.bound // promise.most)
        raise StudyError(
            f"a promise: {len(images)} held-out samples on {nothing.pictures} pictures cannot show "
            f"that a config {promise.words}, even if it loses nothing on them; give {needed:.0f} "
            "or more, or promise less"
        )


def decide(
    promise: Promise,
    front: Sequence[FrozenTrial],
    held_out: Measures,
    measured: Callable[[FrozenTrial], Sequence[SampleScore] | None],
    timer: Callable[[Sequence[FrozenTrial]], Sequence[float]] | None = None,
) -> Decision:
    """Test points of a front, from safest to cheapest, until one may lose more than promised.

    Args:
        promise: What may be lost.
        front: Of the study, by rising cost: what calibration data know.
        held_out: On the held-out split.
        measured: Measures a trial's config there; None where that gives no number.
        timer: Milliseconds to the first token of trials' configs, for a promise by them.
    """
    images, unpruned = image_ids(held_out.samples), held_out.unpruned_correct
    ordered = by_cost(spread(front, CANDIDATES), promise, timer)
    candidates = {trial.number: trial for trial, _ in ordered}

    def loses(number: int) -> Any:
        results = measured(candidates[number])
        return results and lost(losses(promise, results, unpruned), images)

    order = [(trial.number, cost) for trial, cost in ordered]
    tested = in_sequence(promise, order, loses)
    passed = [one.trial for one in tested if one.passed]
    return Decision(
        promise=promise,
        tested=tuple(tested),
        trial=passed[-1] if passed else None,
        knee=front[knee([(cost_of(t), metric_of(t)) for t in front])].number,
        unpruned_accuracy=accuracy(unpruned),
        candidates=len(candidates),
    )


def by_cost(
    points: Sequence[FrozenTrial],
    promise: Promise,
    timer: Callable[[Sequence[FrozenTrial]], Sequence[float]] | None,
) -> list[tuple[FrozenTrial, float]]:
    """Return points of a front with what they cost, the safest and dearest first.

    By milliseconds those are left out that another one beats in metric and time: what is dearer is
    then safer, too, as far as calibration data tell.

    Raises:
        StudyError: Nothing measures the milliseconds that the promise goes by.
    """
    if promise.cheapest == "cost":
        return [(trial, cost_of(trial)) for trial in reversed(points)]
    if timer is None:
        raise StudyError("a promise by milliseconds: nothing here measures them")
    timed = sorted(zip(points, timer(points), strict=True), key=lambda x: (x[1], metric_of(x[0])))
    kept: list[tuple[FrozenTrial, float]] = []
    for trial, cost in timed:
        if not kept or metric_of(trial) < metric_of(kept[-1][0]):
            kept.append((trial, cost))
    return kept[::-1]
