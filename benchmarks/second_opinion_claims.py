"""What the rows of a witness at one budget say on each question that all witnesses are asked."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from common import markdown

from prunetune.study.outcome.noise import paired

Row = dict[str, Any]
HALF = 1.96
"""Standard errors on either side of a mean that make a 95% interval."""
AHEAD, BEHIND, LEVEL = "ahead", "behind", "not told apart"
UNIFORM = "uniform"
WAYS = {
    "saliency": ("fastervlm", "fastv", "topv", "vflowopt", "selector top"),
    "set selection": (
        "cdpruner", "divprune", "mmtok", "scope", "visionzip", "vispruner", "selector cover",
        "selector dpp", "selector maxmin", "selector mmr", "selector distinct",
    ),
    "even spread": ("uniform", "pool", "resize", "selector cells", "selector spread"),
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """An answer to a question: which side (None where nothing is tested), and in words."""

    side: str | None
    words: str


class Table:
    """The rows of a witness at a budget."""

    def __init__(self, mine: list[Row]) -> None:
        self.rows = {row["name"]: row for row in mine if "samples" in row}
        self.refused = [row for row in mine if "samples" not in row]
        self.whole = self.rows["unpruned"]
        self.images, self.types = self.whole["images"], self.whole["types"]
        self.kinds = sorted(set(self.types))
        self.pruned = [name for name in self.rows if name != "unpruned"]

    def column(self, name: str, index: int, kind: str | None = None) -> list[float]:
        """A value a sample: gap (0), KL (1), right or wrong (2); of one kind of question."""
        samples = zip(self.rows[name]["samples"], self.types, strict=True)
        return [values[index] for values, own in samples if kind in (None, own)]

    def accuracy(self, name: str, kind: str | None = None) -> float:
        """In percent."""
        return 100 * statistics.fmean(self.column(name, 2, kind))

    def more(self, one: str, other: str) -> tuple[float, float]:
        """Points of accuracy that one has over the other, and half of their 95% interval."""
        mean, error = paired(self.column(one, 2), self.column(other, 2), self.images)
        return 100 * mean, 100 * HALF * error

    def with_interval(self, name: str, kind: str | None = None) -> str:
        """Accuracy and half of its 95% interval."""
        values = self.column(name, 2, kind)
        images = [i for i, own in zip(self.images, self.types, strict=True) if kind in (None, own)]
        mean, error = paired(values, [0.0] * len(values), images)
        return f"{100 * mean:.1f} ± {100 * HALF * error:.1f}"

    def lines(self) -> list[str]:
        """Of Markdown: the table, then what could not be measured and why."""
        order = sorted(self.pruned, key=lambda name: -self.accuracy(name))
        table = []
        for name in ["unpruned", *order]:
            gap, kl = (statistics.fmean(self.column(name, i)) for i in (0, 1))
            kinds = [self.with_interval(name, kind) for kind in self.kinds]
            table.append((name, f"{gap:.4f}", f"{kl:.3f}", self.with_interval(name), *kinds))
        notes = [f"- `{row['name']}`: {row['note'] or 'not measured'}" for row in self.refused]
        return [*markdown(("", "gap", "KL", "accuracy", *self.kinds), table), "", *notes]

    def best(self, names: list[str], kind: str | None = None) -> str | None:
        """Of the names that are measured, the one of the highest accuracy."""
        known = [name for name in names if name in self.rows]
        return max(known, key=lambda name: self.accuracy(name, kind)) if known else None

    def seeds(self, way: str) -> dict[int, str]:
        """All searches of a group, by their seeds."""
        mine = [name for name in self.pruned if self.rows[name]["group"] == way]
        return {int(name.rpartition(" ")[2]): name for name in mine}


def kinds_won(table: Table) -> dict[str, list[str]]:
    """The kinds of questions at which the best of each way to choose is ahead of the others'."""
    won: dict[str, list[str]] = defaultdict(list)
    for kind in table.kinds:
        best = {way: table.best(list(names), kind) for way, names in WAYS.items()}
        reached = {way: table.accuracy(name, kind) for way, name in best.items() if name}
        top = max(reached.values(), default=math.nan)
        leaders = [way for way, value in reached.items() if value == top]
        if len(leaders) == 1:
            won[leaders[0]].append(kind)
    return won


def verdicts(table: Table) -> dict[str, Said]:
    """What a table says on each question that is asked of all witnesses."""
    said = {}
    published = [n for n in table.pruned if table.rows[n]["group"] in ("preset", "control")]
    best = table.best(published)
    searched, without = (table.seeds(f"searched {how} mass") for how in ("with", "without"))
    if best and searched:
        pairs = [table.more(name, best) for name in searched.values()]
        said["search against the best preset or control"] = judged(pairs, f"`{best}`")
        least = min(published, key=lambda name: statistics.fmean(table.column(name, 0)))
        said["gap of a search against the least gap of these"] = less_gap(table, searched, least)
    if both := sorted(searched.keys() & without.keys()):
        pairs = [table.more(searched[seed], without[seed]) for seed in both]
        said["mass, in searches"] = judged(pairs, "without")
    others = [name for name in published if name != UNIFORM]
    if UNIFORM in table.rows and others:
        said["`uniform` against the best other"] = against_best(table, UNIFORM, others)
    won = kinds_won(table)
    ways = [f"{way}: {', '.join(won[way]) or 'none'}" for way in WAYS]
    said["kinds of questions won alone (no test)"] = Said(None, "; ".join(ways))
    return said


def less_gap(table: Table, searched: dict[int, str], least: str) -> Said:
    """Whether every search has a smaller gap than the preset or control that has the smallest."""
    theirs = table.column(least, 0)
    pairs = [paired(table.column(name, 0), theirs, table.images) for name in searched.values()]
    side = LEVEL
    if all(mean < -HALF * error for mean, error in pairs):
        side = AHEAD
    elif all(mean > HALF * error for mean, error in pairs):
        side = BEHIND
    ours = ", ".join(f"{statistics.fmean(table.column(n, 0)):.4f}" for n in searched.values())
    return Said(side, f"{side}: {ours} against {statistics.fmean(theirs):.4f} (`{least}`)")


def against_best(table: Table, name: str, others: list[str]) -> Said:
    """A method against the best other, which is chosen on the other half of the pictures.

    A rival that is chosen by the same answers that it is then tested on looks better than it is.
    """
    place = {image: index for index, image in enumerate(dict.fromkeys(table.images))}
    halves = [place[image] % 2 for image in table.images]
    theirs, rivals = [0.0] * len(halves), []
    for half in (0, 1):
        unseen = [own != half for own in halves]
        rival = max(others, key=lambda other: sum(_where(table.column(other, 2), unseen)))
        rivals.append(f"`{rival}`")
        answers = table.column(rival, 2)
        theirs = [a if own == half else t for a, t, own in zip(answers, theirs, halves)]
    mean, error = paired(table.column(name, 2), theirs, table.images)
    return judged([(100 * mean, 100 * HALF * error)], " or ".join(dict.fromkeys(rivals)))


def _where(values: list[float], chosen: list[bool]) -> list[float]:
    return [value for value, taken in zip(values, chosen, strict=True) if taken]


def judged(pairs: list[tuple[float, float]], other: str) -> Said:
    """Tell a side by differences with half intervals: a claim needs every seed on its side."""
    mean = statistics.fmean(more for more, _ in pairs)
    if all(more > half for more, half in pairs):
        side, word = AHEAD, f"ahead of {other}"
    elif all(more < -half for more, half in pairs):
        side, word = BEHIND, f"behind {other}"
    else:
        side, word = LEVEL, f"not told apart from {other}"
    shown = ", ".join(f"{more:+.1f} ± {half:.1f}" for more, half in pairs)
    return Said(side, f"{word}: {mean:+.1f} points in the mean ({shown})")


def agreement(one: Table, other: Table) -> str:
    """Spearman's rank correlation of the accuracies of what both have measured, untuned."""
    from scipy.stats import spearmanr

    untuned = [n for n in one.pruned if not one.rows[n]["group"].startswith("searched")]
    both = [name for name in untuned if name in other.rows]
    if len(both) < 4:
        return "too few cases in common"
    values = [[table.accuracy(name) for name in both] for table in (one, other)]
    if any(len(set(column)) == 1 for column in values):
        return "one has the same accuracy throughout"
    found = spearmanr(*values)
    return f"{float(found.statistic):.2f} over {len(both)} untuned cases"
