"""Writes the JSON schema of a pruning config: `make schema`.

python tools/export_schema.py [FILE]
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prunetune.config import PruningConfig
from prunetune.registry import Registry
from prunetune.restorers import RESTORERS
from prunetune.scorers import SCORERS
from prunetune.selectors import SELECTORS

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "config.schema.json"


def schema() -> dict[str, Any]:
    """Return the schema, with every built-in scorer, selector and restorer.

    pydantic knows the tables' base classes only; what stands in the tables is put in their place.
    """
    whole = PruningConfig.model_json_schema()
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}
    # A file must say what it is, although Python callers need not.
    whole["required"] = ["format", "version", *whole["required"]]
    definitions = whole["$defs"]
    definitions["Scorer"] = {"oneOf": _entries(SCORERS, definitions)}
    # Last: a part of a quota knows the base class, too.
    definitions["Selector"] = {"oneOf": _entries(SELECTORS, definitions)}
    definitions["Restorer"] = {"oneOf": _entries(RESTORERS, definitions)}
    return whole


def _entries(table: Registry[Any], definitions: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    for name in table:
        kind: type[BaseModel] = table.get(name)
        if not kind.__module__.startswith("prunetune."):  # installed here, not part of prunetune
            continue
        entry = kind.model_json_schema()
        definitions |= entry.pop("$defs", {})
        entry["required"] = sorted({"name", *entry.get("required", [])})
        # The reasons in the docstring belong to the code.
        entry["description"] = table.get(name).summary
        definitions[kind.__name__] = entry
        found.append({"$ref": f"#/$defs/{kind.__name__}"})
    return found


def text() -> str:
    """Return the schema as it is written to docs/."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SCHEMA
    target.write_text(text(), encoding="utf-8")
