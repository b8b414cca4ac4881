"""Runs tests on the newest transformers and says whether the declared range can grow.

`make test-newest` runs it in an environment that has that version:

    .venv-newest/bin/python tools/beyond.py PYTEST-ARGUMENTS

Exits with 0 where there is nothing beyond the range or the tests pass, else with 1.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from overlay import declared
from packaging.requirements import Requirement

SHOWN = 20


def broken(results: Path) -> list[str]:
    """Return a line for each test of a JUnit file that failed: its name and the error's first."""
    if not results.is_file():
        return ["pytest wrote no results"]
    lines = []
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        for bad in (*case.iter("failure"), *case.iter("error")):
            said = (bad.get("message") or "").partition("\n")[0]
            lines.append(f"{case.get('classname')}::{case.get('name')}: {said}")
    return lines


def verdict(found: str, requirement: str, failures: list[str] | None) -> str:
    """Return what the newest transformers means for the declared range.

    Args:
        found: The newest version.
        requirement: What is declared.
        failures: Of its tests; None: not run.
    """
    bounds = str(Requirement(requirement).specifier)
    if failures is None:
        return f"transformers {found} is the newest, and within the range ({bounds}): nothing to do"
    if not failures:
        return f"transformers {found} passes: raise the bound ({bounds}) in pyproject.toml, twice"
    rest = len(failures) - SHOWN
    shown = [*failures[:SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
    return "\n  ".join([f"transformers {found} breaks {len(failures)} tests:", *shown])


def main(arguments: list[str]) -> int:
    """Run the tests where the installed version is beyond the range; print the verdict."""
    found, requirement = version("transformers"), declared()
    if Requirement(requirement).specifier.contains(found):
        print(verdict(found, requirement, None))
        return 0
    with TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        pytest = [sys.executable, "-m", "pytest", f"--junitxml={results}", *arguments]
        status = subprocess.run(pytest, check=False).returncode
        failures = broken(results)
    if status and not failures:
        failures = [f"pytest exited with {status}"]
    print(verdict(found, requirement, failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
