"""The page of second_opinion.py: a table a witness and budget, and what they agree on."""

from collections import defaultdict
from datetime import UTC, datetime
from itertools import combinations

from common import markdown
from second_opinion_claims import AHEAD, BEHIND, Row, Said, Table, agreement, verdicts

Answers = dict[str, dict[tuple[str, float], Said]]
"""By question, then by witness and budget."""
INTRO = """\
# A second opinion

Does a result on one model hold on another? This page has the same measurements on every *witness*,
a model with a data set of its own. A claim about pruning is worth what the witnesses agree on.
Written by `python benchmarks/second_opinion.py`; what was measured of a witness, and on how many
samples, stands above its tables. `tiny` and `tiny-1` are the embedded models (`--witness tiny`),
`real` is of real pretrained parts (`--witness real=MODEL,DATA`, benchmarks/real_parts/).

- Presets are moved onto each budget (mean retention over all decoder layers). A row `selector NAME`
  is that selector with its defaults, in one stage before the language model. `resize` sends smaller
  pictures and prunes nothing.
- Searches see calibration data only. All figures are measured on held-out data, and the best preset
  or control is chosen by them: that favours it, not the searches.
- Columns: the gap (1 - cosine of the last prompt token's final state, pruned against unpruned); KL
  of the next token in nats; accuracy (exact answers) in percent, in all and by kind of question.
  ± is half of a 95% interval, over pictures. Best accuracy first.
- Where `uniform` is compared with the best other, that one is chosen on the other half of the
  pictures: chosen by the same answers, the best of many equals would look better than it is.
- "Won alone": the kinds of questions on which the best case of one way of choosing tokens (by
  saliency, as a set, or evenly spread) has a higher accuracy than the best of each other way.
"""


def in_short(answers: Answers, measured: set[tuple[str, float]]) -> str:
    """One paragraph: a claim carries over if it is on one side wherever anything is measured."""
    alike, partly, others = [], [], []
    for question, said in answers.items():
        sides = {one.side for one in said.values()}
        if sides == {None}:
            continue
        if len(sides) > 1 or not sides <= {AHEAD, BEHIND}:
            others.append(question)
        elif said.keys() == measured:
            alike.append(f"{question} ({sides.pop()})")
        else:
            partly.append(f"{question} ({sides.pop()})")
    some = f"The same where it was measured, but not measured everywhere: {'; '.join(partly)}. "
    count = len({witness for witness, _ in measured})
    return (
        f"The same on all {count} witnesses, at every budget "
        f"measured: {'; '.join(alike) or 'nothing'}. {some if partly else ''}Different, or not "
        f"told apart somewhere: {'; '.join(others) or 'nothing'}."
    )


def carried(tables: dict[tuple[str, float], Table]) -> list[str]:
    """What the witnesses say beside each other."""
    witnesses = list(dict.fromkeys(witness for witness, _ in tables))
    lines = ["## What carries over", ""]
    if len(witnesses) < 2:
        lines += [f"One witness so far ({witnesses[0]}): nothing can be said to carry over."]
    answers: Answers = defaultdict(dict)
    for key, table in tables.items():
        for question, said in verdicts(table).items():
            answers[question][key] = said
    if len(witnesses) > 1:
        lines += [in_short(answers, set(tables))]
    for question, known in answers.items():
        cells = [(witness, f"{keep:g}", said.words) for (witness, keep), said in known.items()]
        lines += ["", f"**{question}**", "", *markdown(("witness", "kept", "says"), cells)]
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
    """The whole page of the rows: witnesses as they come, budgets from high to low."""
    groups: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for row in found:
        groups[row["witness"], row["keep"]].append(row)
    whole = {key for key, mine in groups.items() if any(r["name"] == "unpruned" for r in mine)}
    order = list(dict.fromkeys(witness for witness, _ in groups))
    keys = sorted(whole, key=lambda key: (order.index(key[0]), -key[1]))
    tables = {key: Table(groups[key]) for key in keys}
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
