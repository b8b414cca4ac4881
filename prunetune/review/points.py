"""What figures of trials share: the text over a point, and when an axis is logarithmic."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from prunetune.review.facts import StudyFacts, TrialFacts
from prunetune.review.theme import AXIS_WIDTH, number, percent, plain, wrapped

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
        # By itself plotly labels 2 and 5 of each decade as bare digits.
        ticks = [m * 10.0**k for k in range(-12, 7) for m in (1, 2, 5)]
        shown = [v for v in ticks if min(values) / 2 <= v <= 2 * max(values)]
        labels = [f"{v:.3g}" for v in shown]
        found.update_layout({axis: {"type": "log", "tickvals": shown, "ticktext": labels}})
        title = found.layout[axis].title
        name = html.unescape(title.text.replace("<br>", " "))
        title.text = wrapped(f"{name}, log scale", AXIS_WIDTH)
