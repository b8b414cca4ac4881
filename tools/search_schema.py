"""Writes the JSON schema of what `search --json` ends with: `make schema`.

python tools/search_schema.py [FILE]
"""

import json
import sys
from pathlib import Path
from typing import Any

from prunetune.promise import Promise
from prunetune.provenance import Judged, Saving

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "search.schema.json"

_NUMBER, _TEXT, _FLAG = {"type": "number"}, {"type": "string"}, {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_INTERVAL = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_METRIC = {"enum": ["cosine", "kl", "cosine+kl", "kl-answer"]}
_COST = {"enum": ["mean_retention", "flops_ratio", "kv_mib"]}


def maybe(kind: dict[str, Any]) -> dict[str, Any]:
    """Return a kind, or null."""
    return {"anyOf": [kind, {"type": "null"}]}


def record(about: str, more: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return an object that has all of these fields and no others.

    Args:
        about: What it is.
        more: Fields that it may have.
        fields: Name to schema.
    """
    return {
        "description": about,
        "type": "object",
        "properties": {**fields, **(more or {})},
        "required": list(fields),
        "additionalProperties": False,
    }


def listed(kind: dict[str, Any]) -> dict[str, Any]:
    """Return a list of a kind."""
    return {"type": "array", "items": kind}


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a definition."""
    return {"$ref": f"#/$defs/{name}"}


def schema() -> dict[str, Any]:
    """Return the schema: of a search at one budget, of a front, and of one with a promise."""
    definitions: dict[str, Any] = {}
    for kind in (Judged, Saving, Promise):
        # Promise leaves out what is as ever when it is written: pydantic does not see its fields.
        mode = "validation" if kind is Promise else "serialization"
        entry = kind.model_json_schema(mode=mode)
        definitions |= entry.pop("$defs", {})
        definitions[kind.__name__] = entry
    # Left out where it is "cost".
    definitions["Promise"]["required"] = ["loss", "most"]
    # Not a field of the config's provenance: it follows from the others.
    told = {"description": "What the rounds tell.", "enum": ["faster", "slower", "within noise"]}
    definitions["Saving"]["properties"]["told"] = told
    definitions["Saving"]["required"].append("told")
    definitions |= _parts()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "the last line of prunetune search --json",
        "anyOf": [ref("one_budget"), ref("front"), ref("decided")],
        "$defs": definitions,
    }


def _parts() -> dict[str, Any]:
    flops = maybe({"type": "object", "additionalProperties": _NUMBER})
    worth = {"gap": _NUMBER, "held_out_gap": _NUMBER, "held_out_ci": _INTERVAL}
    scores = {"top1_agreement": _NUMBER, "accuracy": maybe(_NUMBER)}
    costs = {"mean_retention": _NUMBER, "flops_ratio": _NUMBER, "flops": flops, "kv_ratio": _NUMBER}
    common = {
        "study": _TEXT,
        "budget": {"type": "object", "minProperties": 1, "maxProperties": 1},
        "trials": ref("trials"),
        "stopped": maybe(_TEXT),
        "seconds": _NUMBER,
        "sample_evaluations": _COUNT,
        "unpruned": record("Without pruning, held-out.", accuracy=maybe(_NUMBER)),
        "tick": {"description": "Whether the search is a success beyond noise.", **_FLAG},
        "verdict": {"description": "The same in words, for people.", **_TEXT},
        "saving": {"description": "With --bench.", **maybe(ref("Saving"))},
        "report": maybe(_TEXT),
        "skipped": _COUNT,
    }
    front = {
        **common,
        "objectives": {"type": "array", "prefixItems": [_METRIC, _COST], "items": False},
        "front": {"type": "array", "items": ref("place")},
        "points": listed(ref("point")),
        "knee": {"description": "Trial at the front's bend.", **_COUNT},
        "judged": {"description": "Of what ships, or of the knee.", **maybe(ref("Judged"))},
    }
    loses = ref("loses")
    return {
        "trials": record("By outcome.", complete=_COUNT, pruned=_COUNT, failed=_COUNT),
        "baseline": record(
            "A preset, or smaller pictures, at the same cost.",
            name=_TEXT,
            held_out_gap=maybe(_NUMBER),
            top1_agreement=maybe(_NUMBER),
            accuracy=maybe(_NUMBER),
            mean_retention=maybe(_NUMBER),
            flops_ratio=maybe(_NUMBER),
            notes=_TEXT,
            is_tuned=_FLAG,
            samples={"description": "That it was measured on.", **maybe(_COUNT)},
            stopped={
                "description": "Why not on all; no reason: the rest could change nothing.",
                **maybe(_TEXT),
            },
        ),
        "place": {
            "description": "A trial of the front: its number, metric and cost.",
            "type": "object",
            "required": ["trial"],
            "minProperties": 3,
            "maxProperties": 3,
            "additionalProperties": _NUMBER,
        },
        "point": record(
            "A point of the front that was measured on held-out data.",
            trial=_COUNT,
            cost=_NUMBER,
            **worth,
            **scores,
            **costs,
            baselines=listed(ref("baseline")),
            judged=ref("Judged"),
            config=_TEXT,
        ),
        "loses": record(
            "What is lost against unpruned on held-out data, in the promise's unit.",
            mean=_NUMBER,
            interval=_INTERVAL,
            bound={"description": "One-sided 95%: held against the promise.", **_NUMBER},
            pictures=_COUNT,
        ),
        "tested": record("A candidate.", trial=_COUNT, cost=_NUMBER, loses=loses, passed=_FLAG),
        "decision": record(
            "What to ship.",
            promise=ref("Promise"),
            cheapest={"enum": ["cost", "ms"]},
            kept=_FLAG,
            trial=maybe(_COUNT),
            cost=maybe(_NUMBER),
            loses=maybe(loses),
            room=maybe(_NUMBER),
            tested=listed(ref("tested")),
            candidates=_COUNT,
            knee=_COUNT,
        ),
        "one_budget": record(
            "A search at one budget.",
            **common,
            best=record("The config.", trial=_COUNT, **worth, **scores, **costs),
            baselines=listed(ref("baseline")),
            judged=ref("Judged"),
            config=_TEXT,
        ),
        "front": record("A search with --objective pareto.", **front),
        "decided": record(
            "A search with --max-drop, --max-gap or --min-agreement.",
            **front,
            decision=ref("decision"),
            config={"description": "null where nothing keeps the promise.", **maybe(_TEXT)},
        ),
    }


def text() -> str:
    """Return the schema as it is written to docs/."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SCHEMA
    target.write_text(text(), encoding="utf-8")
