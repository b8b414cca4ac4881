"""``selectors``: what can choose the set of visual tokens, and what a search may tune of it."""

import inspect
from typing import Any

from prunetune.cli._app import AsJson, verb
from prunetune.cli._hyperparameters import field_of, searched
from prunetune.cli._output import Output


@verb("selectors", "prunetune selectors")
def selectors(as_json: AsJson = False) -> None:
    """List selectors: how they choose, come from, and their hyperparameters' ranges."""
    from prunetune.selectors import SELECTORS

    rows = [_described(name, SELECTORS.get(name)) for name in SELECTORS]
    out = Output(as_json)
    out.table(
        ("selector", "what it is", "compares patches", "by scores"),
        [
            (
                row["name"],
                row["summary"],
                "yes" if row["pairwise"] else "no",
                "yes" if row["scores"] else "no, at its defaults",
            )
            for row in rows
        ],
        wrap="what it is",
    )
    out.line()
    out.table(
        ("selector", "hyperparameter", ">default", "searched", "allowed", "what it is for"),
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
    out.table(("selector", "source"), [(row["name"], row["source"]) for row in rows], wrap="source")
    out.finish({"selectors": rows})


def _described(name: str, selector: Any) -> dict[str, Any]:
    return {
        "name": name,
        "summary": selector.summary,
        "nested": selector.nested,
        "pairwise": selector.pairwise,
        "scores": not selector().ignores_scores,
        "source": (inspect.getdoc(selector) or "").partition("\n")[0],
        "hyperparameters": [
            field_of(key, info) for key, info in selector.model_fields.items() if key != "name"
        ],
    }
