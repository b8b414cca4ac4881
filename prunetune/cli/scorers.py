"""``scorers``: what can rank visual tokens, and what a search may tune of it."""

import inspect
from typing import Any

from prunetune.cli._app import AsJson, verb
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
                _range(field),
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
            _field(key, info) for key, info in scorer.model_fields.items() if key != "name"
        ],
    }


def _field(name: str, info: Any) -> dict[str, Any]:
    from prunetune.scorers import Tunable

    tunable = next((item for item in info.metadata if isinstance(item, Tunable)), None)
    searched: Any = None
    if name == "weight":
        searched = [-1.0, 1.0]
    elif tunable is not None:
        searched = list(tunable.choices) or [tunable.low, tunable.high]
    return {
        "name": name,
        "default": info.default,
        "searched": searched,
        "log": bool(tunable and tunable.log),
        "allowed": _allowed(info),
        "shown": "signed score weight" if name == "weight" else (tunable.shown if tunable else ""),
    }


def _allowed(info: Any) -> str:
    """Return what the schema allows: bounds, or the values of a choice."""
    from typing import Literal, get_args, get_origin

    if get_origin(info.annotation) is Literal:
        return ", ".join(str(value) for value in get_args(info.annotation))
    if info.annotation is bool:
        return "true, false"
    bounds: dict[str, Any] = {}
    for item in info.metadata:
        for key in ("ge", "gt", "le", "lt"):
            if getattr(item, key, None) is not None:
                bounds[key] = getattr(item, key)
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None and high is None:
        return str(getattr(info.annotation, "__name__", info.annotation))
    return f"{low:g} to {high:g}" if high is not None and high < 1e9 else f"{low:g} or more"


def _range(field: dict[str, Any]) -> str:
    if field["searched"] is None:
        return "-"
    text = " to ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in field["searched"]
    )
    return f"{text} (log)" if field["log"] else text
