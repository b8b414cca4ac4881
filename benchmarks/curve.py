"""README's picture: accuracy against tokens kept on the embedded model, held out, with intervals.

Searched configs (100 trials, the mean of their seeds), `uniform`, `pool`, `resize`, and at each
budget the published preset that does best there. An interval is the 95% bootstrap over pictures.
One JSON line a row is appended to --out; what is there is not measured again. --searched takes
winners from rows of searches.py or pixels.py instead of searching anew.

    python benchmarks/curve.py --searched searches.jsonl --image docs/images/accuracy.svg
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from common import finish, markdown, name_model
from ledger import Ledger, whose
from searches import evaluators
from searches import one as search

from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.scores import image_ids, measure
from prunetune.presets import preset_names
from prunetune.review.theme import BLUE, GREEN, GREY, ORANGE, VERMILLION
from prunetune.space.space import Space
from prunetune.spec import StudySpec
from prunetune.study.outcome.baselines import RESIZE, resize_at
from prunetune.study.outcome.intervals import bootstrap_ci
from prunetune.study.trials.trials import presets_at

CONTROLS = ("uniform", "pool", "random", RESIZE)
STYLES = {
    "searched": (VERMILLION, "o", "searched by prunetune"),
    "uniform": (BLUE, "s", "uniform: every n-th token"),
    "published": (GREEN, "^", "best published preset at that budget"),
    "pool": (ORANGE, "D", "pool: means of neighbours"),
    RESIZE: (GREY, "X", "resize: smaller pictures"),
}
"""Colour, marker and name of each line."""

Row = dict[str, Any]


def row(name: str, keep: float, runs: list[list[float]], held_out: Evaluator, note: str) -> Row:
    """Return the mean over runs of each sample's answer, and its interval over pictures."""
    mean = [math.fsum(right) / len(runs) for right in zip(*runs, strict=True)]
    low, high = bootstrap_ci(mean, image_ids(held_out.samples))
    accuracy = math.fsum(mean) / len(mean)
    found = {"name": name, "keep": keep, "note": note, "accuracy": accuracy}
    return {**found, "low": low, "high": high, "runs": len(runs)}


def right(held_out: Evaluator, config: PruningConfig) -> list[float]:
    return [float(bool(one.correct)) for one in measure(held_out, config)]


def winners(keep: float, ledgers: list[Ledger]) -> dict[int, PruningConfig]:
    """Return the default search's configs at a budget by seed, from rows of other scripts."""
    found = {}
    for one in (one for ledger in ledgers for one in ledger.rows()):
        plain = one.get("parts", "all") == "all" and one.get("metric", "cosine") == "cosine"
        named = one.get("name", f"searched, seed {one.get('seed')}")
        if one["keep"] == keep and plain and "config" in one and named.startswith("searched, seed"):
            found[int(named.rsplit(" ", 1)[1])] = PruningConfig.parse(one["config"])
    return found


def measured(keep: float, options: argparse.Namespace, ledger: Ledger) -> None:
    """Append what is missing at a budget."""
    known = {one["name"] for one in ledger.rows() if one["keep"] == keep}
    evaluator, held_out = evaluators(keep, options.samples, model=options.model)
    space = Space.of(StudySpec(keep=keep), evaluator.facts())
    if "unpruned" not in known:
        answers = [[float(bool(one)) for one in held_out.unpruned_correct]]
        ledger.add(row("unpruned", keep, answers, held_out, ""))
    for preset in [resize_at(space, evaluator), *presets_at(options.presets, space)]:
        if preset.name not in known and preset.config is not None:
            answers = [right(held_out, preset.config)]
            found = row(preset.name, keep, answers, held_out, preset.note)
            ledger.add(found | {"tokens": preset.tokens})
    if "searched" not in known:
        configs = list(
            winners(keep, [Ledger(path, ledger.about) for path in options.searched]).values()
        )
        for seed in () if configs else options.seeds:
            spec = StudySpec(model=options.model, keep=keep, seed=seed, trials=options.trials)
            configs.append(PruningConfig.parse(search(spec, evaluator, held_out)["config"]))
        answers = [right(held_out, config) for config in configs]
        ledger.add(row("searched", keep, answers, held_out, f"{len(configs)} seeds"))


def lines(found: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each line of the picture, by rising share of tokens."""
    out = {name: [one for one in found if one["name"] == name] for name in STYLES}
    published = [r for r in found if r["name"] not in (*CONTROLS, "searched", "unpruned")]
    for keep in {one["keep"] for one in published}:
        here = [one for one in published if one["keep"] == keep]
        out["published"].append(max(here, key=lambda one: one["accuracy"]))
    return {name: sorted(rows, key=lambda one: one["keep"]) for name, rows in out.items() if rows}


def draw(found: list[Row], image: Path) -> None:
    """Write the picture, as SVG or whatever the name's ending says."""
    import matplotlib as mpl

    mpl.use("agg")
    # The same rows give the same bytes, and text stays text.
    mpl.rcParams |= {"svg.hashsalt": "prunetune", "svg.fonttype": "none", "font.size": 10}
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    unpruned = next(one["accuracy"] for one in found if one["name"] == "unpruned")
    axes.axhline(100 * unpruned, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(f"unpruned {100 * unpruned:.1f}", (0.048, 100 * unpruned + 0.8), color="#555555")
    for name, points in lines(found).items():
        colour, marker, label = STYLES[name]
        # Smaller pictures have what a level leaves of the tokens, which is less than the budget.
        x = [one["tokens"] if name == RESIZE else one["keep"] for one in points]
        y = [100 * one["accuracy"] for one in points]
        spread = [[100 * abs(one[side] - one["accuracy"]) for one in points] for side in SIDES]
        axes.errorbar(x, y, spread, color=colour, marker=marker, capsize=3, label=label)
    axes.set_xscale("log")
    kept = sorted({one["keep"] for one in found})
    axes.set_xticks(kept, [f"{100 * keep:g}%" for keep in kept])
    axes.minorticks_off()
    axes.set_xlabel("image tokens kept, mean over all decoder layers (visual KV cache)")
    axes.set_ylabel("right answers, % of 480 held-out questions")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    figure.savefig(image, metadata={"Date": None} if image.suffix == ".svg" else None)


SIDES = ("low", "high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--presets", nargs="*", default=list(preset_names()))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--samples", type=int, help="a split; by default all")
    parser.add_argument("--searched", nargs="*", type=Path, default=[], help="rows with winners")
    parser.add_argument("--out", type=Path, default=Path("curve.jsonl"))
    parser.add_argument("--image", type=Path, help="picture to write; needs matplotlib")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ledger = Ledger(options.out, whose(options.model, samples=options.samples))
    for keep in options.keeps:
        measured(keep, options, ledger)
    found = [one for one in ledger.rows() if one["keep"] in options.keeps]
    table = [
        (
            f"{one['keep']:g}",
            one["name"],
            f"{100 * one['accuracy']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})",
            one["note"],
        )
        for one in sorted(found, key=lambda one: (-one["keep"], -one["accuracy"]))
    ]
    print("\n".join(markdown(("keep", "", "accuracy, 95%", ""), table)))
    if options.image:
        draw(found, options.image)
    finish({"rows": len(found), "out": str(options.out)})


if __name__ == "__main__":
    main()
