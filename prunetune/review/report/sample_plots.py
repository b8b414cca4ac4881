"""How gaps are spread over samples, and which baseline stands beside the tuned config."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from prunetune.review.facts import StudyFacts
from prunetune.review.theme import (
    BLUE,
    VERMILLION,
    figure,
    number,
    plain,
)

_BINS = 24


def best_baseline(facts: StudyFacts) -> str | None:
    """Return the name of the strongest baseline, as the verdict has it."""
    configs = (facts.detail or {}).get("configs", {})
    judged = facts.judged
    best = judged.best_baseline if judged is not None else None
    if best is not None and best.name in configs:
        return best.name
    names = [name for name in configs if name != "tuned"]
    return min(names, key=lambda n: float(np.mean(configs[n]["gap"])), default=None)


def gaps(facts: StudyFacts) -> tuple[str, dict[str, list[float]], str]:
    """Return each sample's value by config, the axis, and the split it is from.

    From the held-out split where it was measured, else the metric on the calibration split.
    """
    if facts.detail is not None:
        configs = facts.detail["configs"]
        found = {"tuned": list(configs["tuned"]["gap"])}
        if (other := best_baseline(facts)) is not None:
            found[other] = list(configs[other]["gap"])
        return "held-out", found, "gap (1 - cosine)"
    best = facts.best
    if best is None or not best.samples:
        return "", {}, ""
    found = {best.name: list(best.samples.values())}
    presets = [t for t in facts.ranked if t.attrs.get("preset") and t.number != best.number]
    if presets and presets[0].samples:
        found[str(presets[0].attrs["preset"])] = list(presets[0].samples.values())
    return "calibration", found, facts.axis()


def gap_distribution(facts: StudyFacts) -> go.Figure | None:
    """Draw how many samples have which gap, tuned against the best baseline."""
    split, found, axis = gaps(facts)
    values = next(iter(found.values()), [])
    if not values:
        return None
    half, worst = float(np.median(values)), float(np.quantile(values, 0.95))
    title = (
        f"Half of the {len(values)} {split} samples stay below {number(half)}, "
        f"95% below {number(worst)}; the tail is where to look"
    )
    edges = _edges([v for held in found.values() for v in held])
    chart = figure(title, axis, "samples (share of the split)", barmode="overlay")
    for k, (name, held) in enumerate(found.items()):
        shares = np.histogram(np.minimum(held, edges[-1]), edges)[0] / len(held)
        if k == 0:
            chart.add_trace(
                go.Bar(
                    x=(edges[:-1] + edges[1:]) / 2,
                    y=shares,
                    width=np.diff(edges),
                    name=plain(name),
                    marker={"color": VERMILLION, "opacity": 0.65, "line": {"width": 0}},
                    hovertemplate="%{y:.3~%} of the samples near %{x:.3~g}<extra></extra>",
                )
            )
        else:
            chart.add_trace(
                go.Scatter(
                    x=edges,
                    y=[*shares, shares[-1]],
                    name=plain(f"{name} (best baseline)"),
                    mode="lines",
                    line={"color": BLUE, "width": 2.5, "shape": "hv"},
                    hoverinfo="skip",
                )
            )
    chart.update_yaxes(tickformat=".0%", rangemode="tozero")
    return chart


def _edges(values: Sequence[float]) -> np.ndarray:
    # One sample far out must not leave everything else in a single bar.
    high = max(float(np.quantile(values, 0.995)) * 1.05, 1e-9)
    return np.linspace(0.0, high, _BINS + 1)
