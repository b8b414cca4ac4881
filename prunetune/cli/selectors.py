"""``selectors``: what can choose the set of visual tokens, and what a search may tune of it."""

from typing import Any

from prunetune.cli._app import AsJson, OneName, named, verb
from prunetune.cli._hyperparameters import part_of, print_parts
from prunetune.cli._output import Output


@verb("selectors", "prunetune selectors", "prunetune selectors cover")
def selectors(name: OneName = None, as_json: AsJson = False) -> None:
    """List selectors: how they choose, come from, and their hyperparameters' ranges."""
    from prunetune.selectors import SELECTORS

    rows = [
        _described(one, SELECTORS.get(one))
        for one in named("selectors", name, {k: k for k in SELECTORS})
    ]
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
    print_parts(out, "selector", rows)


def _described(name: str, selector: Any) -> dict[str, Any]:
    return part_of(
        name,
        selector,
        nested=selector.nested,
        pairwise=selector.pairwise,
        scores=not selector().ignores_scores,
    )
