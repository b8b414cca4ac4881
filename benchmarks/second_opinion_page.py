"""The page of second_opinion.py: a table a witness and budget, and what they agree on."""

import math
import statistics
from collections import defaultdict
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from common import markdown

from prunetune.study.outcome.noise import paired

Row = dict[str, Any]
SIDES = ("ahead", "behind", "not told apart")
"""How what `judged` says begins."""
HALF = 1.96
"""Standard errors on either side of a mean that make a 95% interval."""
WAYS = {
    "saliency": ("fastervlm", "fastv", "topv", "vflowopt", "selector top"),
    "set selection": (
        "cdpruner", "divprune", "mmtok", "scope", "visionzip", "vispruner", "selector cover",
        "selector dpp", "selector maxmin", "selector mmr", "selector distinct",
    ),
    "even spread": ("uniform", "pool", "resize", "selector cells", "selector spread"),
}  # fmt: skip
INTRO = """\
# A second opinion

Does a result on one model hold on another? This page has the same measurements on every *witness*,
a model with a data set of its own. A claim about pruning is worth what the witnesses agree on.
Written by `python benchmarks/second_opinion.py`.

- Presets are moved onto each budget (mean retention over all decoder layers). A row `selector NAME`
  is that selector with its defaults, in one stage before the language model. `resize` sends smaller
  pictures and prunes nothing.
- Searches see calibration data only. All figures are measured on held-out data, and the best preset
  or control is chosen by them: that favours it, not the searches.
- Columns: the gap (1 - cosine of the last prompt token's final state, pruned against unpruned); KL
  of the next token in nats; accuracy (exact answers) in percent, in all and by kind of question.
  ± is half of a 95% interval, over pictures. Best accuracy first.
- "Won alone": the kinds of questions on which the best case of one way of choosing tokens (by
  saliency, as a set, or evenly spread) has a higher accuracy than the best of each other way.
"""


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

    def seeds(self, way: str) -> list[str]:
        """All searches of a group."""
        return [name for name in self.pruned if self.rows[name]["group"] == way]


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


def verdicts(table: Table) -> dict[str, str]:
    """What a table says on each question that is asked of all witnesses, in words."""
    said = {}
    published = [n for n in table.pruned if table.rows[n]["group"] in ("preset", "control")]
    best = table.best(published)
    searched = table.seeds("searched with mass")
    if best and searched:
        said["search against the best preset or control"] = against(table, searched, best)
    without = table.seeds("searched without mass")
    if searched and len(searched) == len(without):
        pairs = [table.more(a, b) for a, b in zip(sorted(searched), sorted(without), strict=True)]
        said["mass, in searches"] = judged(pairs, "without")
    if best and "uniform" in table.rows and best != "uniform":
        pair = table.more("uniform", best)
        said["`uniform` against the best other"] = judged([pair], f"`{best}`")
    won = kinds_won(table)
    ways = [f"{way}: {', '.join(won[way]) or 'none'}" for way in WAYS]
    said["kinds of questions won alone (no test)"] = "; ".join(ways)
    return said


def against(table: Table, searched: list[str], other: str) -> str:
    return judged([table.more(name, other) for name in searched], f"`{other}`")


def judged(pairs: list[tuple[float, float]], other: str) -> str:
    """Words for differences with half intervals: a claim needs every seed on its side."""
    mean = statistics.fmean(more for more, _ in pairs)
    if all(more > half for more, half in pairs):
        word = f"ahead of {other}"
    elif all(more < -half for more, half in pairs):
        word = f"behind {other}"
    else:
        word = f"not told apart from {other}"
    shown = ", ".join(f"{more:+.1f} ± {half:.1f}" for more, half in pairs)
    return f"{word}: {mean:+.1f} points in the mean ({shown})"


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


def in_short(answers: dict[str, list[tuple[str, ...]]], witnesses: int) -> str:
    """One paragraph: a claim carries over if all witnesses are on one side at every budget."""
    sides: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for question, said in answers.items():
        for witness, _, words in said:
            if (side := next((s for s in SIDES if words.startswith(s)), None)) is not None:
                sides[question][side].add(witness)
    alike = [
        question
        for question, found in sides.items()
        if len(found) == 1
        and all(len(mine) == witnesses and side in SIDES[:2] for side, mine in found.items())
    ]
    same = "; ".join(f"{question} ({next(iter(sides[question]))})" for question in alike)
    others = "; ".join(question for question in sides if question not in alike)
    return (
        f"The same on all {witnesses} witnesses, at every budget measured: "
        f"{same or 'nothing'}. Different, or not told apart somewhere: {others or 'nothing'}."
    )


def carried(tables: dict[tuple[str, float], Table]) -> list[str]:
    """What the witnesses say beside each other."""
    witnesses = list(dict.fromkeys(witness for witness, _ in tables))
    lines = ["## What carries over", ""]
    if len(witnesses) < 2:
        lines += [f"One witness so far ({witnesses[0]}): nothing can be said to carry over."]
    answers: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for (witness, keep), table in tables.items():
        for question, words in verdicts(table).items():
            answers[question].append((witness, f"{keep:g}", words))
    if len(witnesses) > 1:
        lines += [in_short(answers, len(witnesses))]
    for question, said in answers.items():
        lines += ["", f"**{question}**", "", *markdown(("witness", "kept", "says"), said)]
    pairs = [
        (f"{one} and {two}", f"{keep:g}", agreement(tables[one, keep], tables[two, keep]))
        for one, two in combinations(witnesses, 2)
        for keep in sorted({k for _, k in tables}, reverse=True)
        if (one, keep) in tables and (two, keep) in tables
    ]
    if pairs:
        lines += ["", "**Order of methods (Spearman)**", ""]
        lines += markdown(("witnesses", "kept", "correlation"), pairs)
    return lines


def page(found: list[Row]) -> str:
    """The whole page of the rows; witnesses in the order that they were measured."""
    groups: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for row in found:
        groups[row["witness"], row["keep"]].append(row)
    whole = {key for key, mine in groups.items() if any(r["name"] == "unpruned" for r in mine)}
    tables = {key: Table(mine) for key, mine in groups.items() if key in whole}
    if not tables:
        raise SystemExit("second_opinion: no witness is measured yet; name one with --witness")
    lines = [INTRO, f"Written on {datetime.now(UTC):%Y-%m-%d}.", "", *carried(tables)]
    for (witness, keep), table in tables.items():
        lines += ["", f"## {witness}, {100 * keep:g}% kept", ""]
        digest = table.whole["digest"][:12]
        lines += [f"{len(table.types)} held-out samples on {len(set(table.images))} pictures,"]
        searches = sum(table.rows[n]["group"].startswith("searched") for n in table.pruned)
        lines += [
            f"digest `{digest}`; {len(table.pruned)} cases so far, {searches} of them searches."
        ]
        lines += ["", *table.lines()]
    return "\n".join(lines).rstrip() + "\n"
