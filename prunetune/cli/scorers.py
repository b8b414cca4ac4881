"""``scorers``: what can rank visual tokens, and what a search may tune of it."""

import inspect
from typing import Any

from prunetune.cli._app import AsJson, verb
from prunetune.cli._hyperparameters import field_of, searched
from prunetune.cli._output import Output


@verb("scorers", "prunetune scorers")
def scorers(as_json: AsJson = False) -> None:
    """List scorers: what they measure, need, come from, and their hyperparameters' ranges."""
    from prunetune.scorers import SCORERS

    rows = [_described(name, SCORERS.get(name)) for name in SCORERS]
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
    out.line()
    out.table(
        ("scorer", "hyperparameter", ">default", "searched", "allowed", "what it is for"),
        [
            (
                row["name"],
                field["name"],
                str(field["default"]),
                searched(field),
                field["allowed"],
                field["shown"],
            )
            for row in rows
            for field in row["hyperparameters"]
        ],
        wrap="what it is for",
    )
    out.line()
    out.table(("scorer", "source"), [(row["name"], row["source"]) for row in rows], wrap="source")
    out.finish({"scorers": rows})


def _described(name: str, scorer: Any) -> dict[str, Any]:
    return {
        "name": name,
        "summary": scorer.summary,
        "needs": sorted(scorer.needs),
        "layer_0": scorer.model_construct(name=name).usable_at(0),
        "standardised": scorer.standardise,
        "source": (inspect.getdoc(scorer) or "").partition("\n")[0],
        "hyperparameters": [
            field_of(key, info) for key, info in scorer.model_fields.items() if key != "name"
        ],
    }
