"""Which presets can be loaded and run here: some wait for parts that other branches bring.

To be removed once nothing is waited for: `waiting` is then empty for every preset.
"""

from inspect import getsource

import pytest

import prunetune.runtime.choice.choose
from prunetune.presets import preset_names, read_preset
from prunetune.scorers import SCORERS


def waiting(name: str, *, runs: bool) -> str:
    """Return what a preset waits for to be loaded, or run; empty: nothing."""
    data = read_preset(name)
    stages = [s for setting in data.get("released", [data]) for s in setting["stages"]]
    for stage in stages:
        for scorer in stage.get("scorers", ()):
            if scorer["name"] not in SCORERS:
                return f"needs branch wiring: the scorer {scorer['name']}"
        if (
            runs
            and "selector" in stage
            and "selector" not in getsource(prunetune.runtime.choice.choose)
        ):
            return "needs branch wiring: selectors in the runtime"
    return ""


def presets_here(*, runs: bool) -> list:
    """Return the names of all presets as parameters; those that wait are skipped."""
    marks = {n: pytest.mark.skip(reason=w) for n in preset_names() if (w := waiting(n, runs=runs))}
    return [pytest.param(n, marks=marks.get(n, ())) for n in preset_names()]
