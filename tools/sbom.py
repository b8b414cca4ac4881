"""Writes a software bill of materials (CycloneDX 1.6) of what a wheel's installation brings.

    python tools/sbom.py dist/prunetune-0.1.0.cdx.json

Components are the distributions installed here that the package asks for, those of ``search`` and
``serve`` included, with versions, licences and the requirements between them: `make wheel`.
"""

import json
import sys
import tomllib
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("search", "serve")


def needed(requirements: list[str], extras: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield the requirements that hold on this machine."""
    for text in requirements:
        found = Requirement(text)
        marker = found.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield found


def collect(requirements: list[str]) -> dict[str, tuple[Distribution, list[str]]]:
    """Return every distribution that is needed, with the names of those that it needs."""
    found: dict[str, tuple[Distribution, list[str]]] = {}
    left = list(needed(requirements, EXTRAS))
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        inner = list(needed(here.requires or [], tuple(wanted.extras)))
        found[name] = here, sorted({canonicalize_name(each.name) for each in inner})
        left += inner
    return found


def bill(project: dict[str, Any]) -> dict[str, Any]:
    """Return the bill of a project, as plain data."""
    extras = project["optional-dependencies"]
    found = collect([*project["dependencies"], *(text for e in EXTRAS for text in extras[e])])
    refs = {name: f"pkg:pypi/{name}@{here.version}" for name, (here, _) in found.items()}
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    components = [
        {
            "type": "library",
            "bom-ref": refs[name],
            "name": name,
            "version": here.version,
            "purl": refs[name],
            **_licence(here),
        }
        for name, (here, _) in sorted(found.items())
    ]
    graph = [{"ref": own, "dependsOn": sorted(refs.values())}]
    graph += [
        {"ref": refs[name], "dependsOn": [refs[other] for other in others if other in refs]}
        for name, (_, others) in sorted(found.items())
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": components,
        "dependencies": graph,
    }


def _licence(here: Distribution) -> dict[str, Any]:
    said = here.metadata.get("License-Expression") or here.metadata.get("License") or ""
    line = said.strip().partition("\n")[0][:80]
    return {"licenses": [{"license": {"name": line}}]} if line else {}


def main(path: str) -> None:
    """Write the bill."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill(project), indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
