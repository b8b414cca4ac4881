"""Hyperparameters of scorers and selectors, as the commands that list them show them."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from prunetune.cli._output import Output


def field_of(name: str, info: Any) -> dict[str, Any]:
    """Return what there is to say about a field of a scorer or selector, as data."""
    from prunetune.scorers import Tunable

    tunable = next((item for item in info.metadata if isinstance(item, Tunable)), None)
    ranged: Any = None
    if name == "weight":
        ranged = [-1.0, 1.0]
    elif tunable is not None:
        ranged = list(tunable.choices) or [tunable.low, tunable.high]
    return {
        "name": name,
        "default": "(its own)" if info.default_factory else info.default,
        "searched": ranged,
        "log": bool(tunable and tunable.log),
        "levels": tunable.levels if tunable else None,
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


def searched(field: dict[str, Any]) -> str:
    """Return the range that a search draws from, in words."""
    if field["searched"] is None:
        return "-"
    values = field["searched"]
    between = " to " if all(isinstance(value, (int, float)) for value in values) else ", "
    text = between.join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    if field["levels"]:
        text += f", {field['levels']} levels"
    return f"{text} (log)" if field["log"] else text


def print_parts(out: Output, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the hyperparameters and the sources of a table of parts, and end the output.

    Args:
        out: Where to.
        kind: What the parts are, e.g. ``"scorer"``.
        rows: Of ``part_of``.
    """
    out.line()
    out.table(
        (kind, "hyperparameter", ">default", "searched", "allowed", "what it is for"),
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
    out.table((kind, "source"), [(row["name"], row["source"]) for row in rows], wrap="source")
    out.finish({f"{kind}s": rows})


def part_of(name: str, part: Any, **more: Any) -> dict[str, Any]:
    """Return what is said of a part: its name, summary, ``more``, source and hyperparameters."""
    return {
        "name": name,
        "summary": part.summary,
        **more,
        "source": (inspect.getdoc(part) or "").partition("\n")[0],
        "hyperparameters": [
            field_of(key, info) for key, info in part.model_fields.items() if key != "name"
        ],
    }
