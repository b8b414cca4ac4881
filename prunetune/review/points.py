"""What figures of trials share: the text over a point, and when an axis is logarithmic."""

from collections.abc import Sequence

import plotly.graph_objects as go

from prunetune.review.facts import StudyFacts, TrialFacts
from prunetune.review.theme import number, percent, plain

LOG_RANGE = 20.0


def hover(facts: StudyFacts, trial: TrialFacts) -> str:
    """Return what is shown over a trial's point."""
    lines = [f"<b>{plain(trial.name)}</b>, {trial.state}"]
    mark = "" if trial.complete else " (estimate)"
    lines += [
        f"{plain(facts.metrics[k])}: {number(value)}{mark}" for k, value in enumerate(trial.values)
    ]
    lines += [f"layer {layer}: keeps {percent(share)}" for layer, share in trial.schedule]
    return "<br>".join(lines)


def log_if_wide(found: go.Figure, values: Sequence[float], axis: str = "yaxis") -> None:
    """Make an axis logarithmic where values span more than a factor of 20."""
    if min(values) > 0 and max(values) / min(values) > LOG_RANGE:
        # "D1": without it plotly labels 2 and 5 of each decade as a bare digit.
        found.update_layout({axis: {"type": "log", "dtick": "D1", "exponentformat": "none"}})
        found.layout[axis].title.text += ", log scale"
