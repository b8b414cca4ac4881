"""Prints the versions in this environment as constraints, without torch: `make lock`."""

import sys
from importlib.metadata import distributions

# torch is chosen by the Makefile (its wheels differ by machine); pip and setuptools belong to venv.
LEFT_OUT = {"prunetune", "torch", "pip", "setuptools"}

if __name__ == "__main__":
    found = {str(d.metadata["Name"]): d.version for d in distributions()}
    lines = [f"{name}=={version}" for name, version in found.items() if name not in LEFT_OUT]
    head = "# Versions that make demo, make test and .ci/run last ran with; written by make lock."
    sys.stdout.write("\n".join([head, *sorted(lines, key=str.lower), ""]))
