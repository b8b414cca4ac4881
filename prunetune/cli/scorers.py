"""``scorers``: what can rank visual tokens, and what a search may tune of it."""

from typing import Any

from prunetune.cli._app import AsJson, OneName, named, verb
from prunetune.cli._hyperparameters import part_of, print_parts
from prunetune.cli._output import Output


@verb("scorers", "prunetune scorers", "prunetune scorers topv")
def scorers(name: OneName = None, as_json: AsJson = False) -> None:
    """List scorers: what they measure, need, come from, and their hyperparameters' ranges."""
    from prunetune.scorers import SCORERS

    rows = [
        _described(one, SCORERS.get(one)) for one in named("scorers", name, {k: k for k in SCORERS})
    ]
    out = Output(as_json)
    out.table(
        ("scorer", "what it is", "needs", "layer 0"),
        [
            (
                row["name"],
                row["summary"],
                ", ".join(row["needs"]) or "-",
                "yes" if row["layer_0"] else "no",
            )
            for row in rows
        ],
        wrap="what it is",
    )
    print_parts(out, "scorer", rows)


def _described(name: str, scorer: Any) -> dict[str, Any]:
    return part_of(
        name,
        scorer,
        needs=sorted(scorer.needs),
        layer_0=scorer.model_construct(name=name).usable_at(0),
        standardised=scorer.standardise,
    )
