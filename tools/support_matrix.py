"""Write the support matrix from results of the contract tests; nothing in it is typed by hand.

    python tools/support_matrix.py 5.17.0=build/results-5.17.0.xml 5.23.0=...
    python tools/support_matrix.py            # render again what was recorded

Reads pytest's JUnit XML, one file a version of transformers; `make support` makes them. Records the
counts in prunetune/support.json (`prunetune models` shows them) and writes the table between the
markers ``<!-- support:begin -->`` and ``<!-- support:end -->`` of docs/support.md.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.version import Version

from prunetune.families import FAMILIES
from prunetune.files import write_atomically
from prunetune.models.aliases import ALIASES, RECORD

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- support:begin -->", "<!-- support:end -->"
# The first part whose words a test's name holds is what the test is about.
PARTS = (
    ("video", ("video", "mixture", "frames")),
    ("beams", ("beams",)),
    ("caches", ("caches", "static", "cached")),
    ("turns", ("turn", "text_after", "new_image")),
    ("places", ("geometry", "every_token", "rows_and_columns", "cell", "places", "patch_it")),
    ("scores", ("scorer", "attention", "entropy", "scores", "maps")),
    ("removal", ("leaves", "identity", "untouched", "override")),
    ("masked reference", ("masking", "packed", "reference", "row_alone", "counts", "deepstack")),
)
OTHER = "other"
COLUMNS = ("masked reference", "removal", "beams", "caches", "turns", "scores", "places", "video")
OUTCOMES = ("passed", "failed", "skipped")
Counts = dict[str, dict[str, int]]


def part_of(name: str) -> str:
    """Return what a test function is about."""
    return next((part for part, words in PARTS if any(word in name for word in words)), OTHER)


def family_of(test: str, parameters: str, names: Iterable[str]) -> str | None:
    """Return the family a test case is for: the parameter that is its name."""
    words = re.split(r"[-\[\]]", parameters)
    return next((name for name in names if name in words), None)


def read(path: Path, names: Iterable[str]) -> dict[str, Counts]:
    """Return counts by family, part and outcome of one JUnit file."""
    found: dict[str, Counts] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        test, _, parameters = case.attrib["name"].partition("[")
        family = family_of(test, parameters, names)
        if family is None:
            continue
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        # Only a test that has a video is one of videos; a family's own name says nothing.
        given = parameters.replace(family, "")
        part = part_of(f"{test} {given}") if "video" in given else part_of(test)
        counts = found.setdefault(family, {}).setdefault(part, dict.fromkeys(OUTCOMES, 0))
        counts[outcome] += 1
    return found


def total(counts: Counts) -> dict[str, int]:
    """Return outcomes over all parts."""
    added: Counter[str] = Counter()
    for part in counts.values():
        added.update(part)
    return {outcome: added[outcome] for outcome in OUTCOMES}


def recorded(results: Mapping[str, Mapping[str, Counts]]) -> dict[str, Any]:
    """Return what is kept of the results by version and family."""
    names = sorted({name for by_family in results.values() for name in by_family})
    return {
        "versions": sorted(results, key=Version),
        "families": {
            name: {
                version: {**total(by_family[name]), "parts": by_family[name]}
                for version, by_family in sorted(results.items())
                if name in by_family
            }
            for name in names
        },
    }


def cell(results: Mapping[str, Any], part: str, versions: Iterable[str]) -> str:
    """Return what one family's tests of one part came to, at all versions."""
    each = [results.get(version, {}).get("parts", {}).get(part) for version in versions]
    ran = [counts for counts in each if counts and counts["passed"] + counts["failed"]]
    if any(counts["failed"] for counts in ran):
        return "✗ " + ", ".join(str(c["failed"]) for c in ran) + " failed"
    if not ran:
        return "skipped" if any(each) else "-"
    return "✓ " + ("+".join(str(counts["passed"]) for counts in ran))


def table(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the Markdown lines of the matrix: a row a family, passed tests a version."""
    versions = record["versions"]
    shown = " and ".join([", ".join(versions[:-1]), versions[-1]] if versions[1:] else versions)
    sums = "`✓ a+b`: a on the first, b on the second"
    if len(versions) > 2:
        sums = "`✓ a+b+c`: a on the first, b on the second, c on the third"
    lines = [
        f"Passed contract tests on transformers {shown} ({sums}) "
        "on random models of each family's real class; trained weights of these sizes were not "
        "run. `-`: the family has no such test, or no video.",
        "",
        f"| family | models | {' | '.join(COLUMNS)} | all |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name in names:
        results = record["families"].get(name, {})
        models = ", ".join(
            f"`{a.alias}`" for a in ALIASES if a.model_type == name and not a.embedded
        )
        cells = [cell(results, part, versions) for part in COLUMNS]
        passed = "+".join(str(results[v]["passed"]) for v in versions if v in results) or "none"
        failed = sum(results[v]["failed"] for v in versions if v in results)
        skipped = sum(results[v]["skipped"] for v in versions if v in results)
        every = f"{passed}{f', {failed} FAILED' if failed else ''}"
        every += f", {skipped} skipped" if skipped else ""
        lines.append(f"| `{name}` | {models or '-'} | {' | '.join(cells)} | {every} |")
    return lines


def rewrite(page: Path, lines: list[str]) -> bool:
    """Put ``lines`` between the markers of a page; return whether it has them."""
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        return False
    body = "\n".join(lines)
    write_atomically(page, f"{head}{BEGIN}\n{body}\n{END}{tail}".encode())
    return True


def main() -> None:
    """Record the results and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", metavar="VERSION=FILE")
    arguments = parser.parse_args()
    names = list(FAMILIES)
    store = ROOT / "prunetune" / RECORD
    if arguments.results:
        pairs = dict(result.split("=", 1) for result in arguments.results)
        results = {version: read(Path(path), names) for version, path in pairs.items()}
        data = json.dumps(recorded(results), indent=1, sort_keys=True) + "\n"
        write_atomically(store, data.encode())
    record = json.loads(store.read_text(encoding="utf-8"))
    lines = table(record, names)
    page = ROOT / "docs" / "support.md"
    if not rewrite(page, lines):
        print(f"{page}: no section between {BEGIN} and {END}")
    untested = [name for name in names if name not in record["families"]]
    failed = [
        f"{name} on {version}"
        for name, by_version in record["families"].items()
        for version, result in by_version.items()
        if result["failed"]
    ]
    if untested or failed:
        print(f"untested: {', '.join(untested) or 'none'}; failed: {', '.join(failed) or 'none'}")
        sys.exit(1)


if __name__ == "__main__":
    main()
