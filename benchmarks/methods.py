"""Every preset on the embedded model: accuracy by question type, gap and mean retention.

Each preset is moved onto each budget and measured on the held-out split, as a search does; what
had to change and what cannot be met is said. Writes docs/methods-table.md.

    python benchmarks/methods.py [--samples 480] [--keep 0.5 0.25 0.1 0.05] [--out FILE]
"""

import argparse
import math
import platform
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from common import finish, name_model

from prunetune.budget import ModelFacts, mean_retention
from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.measure.evaluator import Evaluator, SampleResult
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.presets import load_preset, preset_names

DOCS = Path(__file__).resolve().parents[1] / "docs"
KEEPS = (0.5, 0.25, 0.1, 0.05)
PARTS_KEEP = 0.25
SOLVERS = ("semi_relaxed", "end_on_v", "literal")


@dataclass(frozen=True)
class Row:
    """One preset at one budget.

    Attributes:
        name: Of the preset.
        keep: The budget.
        note: What had to change, or why it cannot be met.
        retention: Mean retention of the config; the counts are met exactly.
        stages: What each stage leaves.
        results: Of every sample; empty where the budget cannot be met.
    """

    name: str
    keep: float
    note: str
    retention: float = math.nan
    stages: str = ""
    results: tuple[SampleResult, ...] = ()


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    middle = mean(values)
    squares = math.fsum((v - middle) ** 2 for v in values)
    return math.sqrt(squares / max(1, len(values) - 1) / max(1, len(values)))


def solvers(evaluator: Evaluator, keep: float) -> list[Row]:
    """TopV by the solvers that its preset does not take: the paper leaves open which it is."""
    facts, rows = evaluator.facts(), []
    try:
        preset, note = load_preset(
            "topv", model_type=facts.model_type, num_layers=facts.num_layers, keep=keep
        )
    except ConfigError:
        # Said in the preset's own row.
        return []
    data = preset.model_dump(mode="json")
    [scorer] = data["stages"][0]["scorers"]
    own = scorer["solver"]
    for solver in SOLVERS:
        if solver != own:
            scorer["solver"] = solver
            config = PruningConfig.parse(data, solver)
            rows.append(row_of(evaluator, f"topv, solver {solver}", keep, note, config))
    return rows


def measure(evaluator: Evaluator, name: str, keep: float) -> Row:
    facts = evaluator.facts()
    try:
        config, note = load_preset(
            name, model_type=facts.model_type, num_layers=facts.num_layers, keep=keep
        )
    except ConfigError as refusal:
        return Row(name, keep, str(refusal))
    return row_of(evaluator, name, keep, note, config)


def row_of(evaluator: Evaluator, name: str, keep: float, note: str, config: PruningConfig) -> Row:
    results = [result for batch in evaluator.evaluate(config) for _, result in batch]
    num_layers = evaluator.facts().num_layers
    return Row(
        name,
        keep,
        note,
        mean_retention(config.stages, num_layers),
        ", ".join(f"{100 * s.retention:.1f}% from layer {s.layer}" for s in config.stages),
        tuple(results),
    )


def vflowopt_parts(facts: ModelFacts, keep: float) -> dict[str, PruningConfig]:
    """Variants of VFlowOpt at one budget, each with one part changed."""
    preset, _ = load_preset(
        "vflowopt", model_type=facts.model_type, num_layers=facts.num_layers, keep=keep
    )
    data = preset.model_dump(mode="json")
    first, *later = data["stages"]
    [scorer] = first["scorers"]

    def scored(**fields: Any) -> dict[str, Any]:
        return data | {"stages": [first | {"scorers": [scorer | fields]}, *later]}

    one = [first | {"retention": keep}]
    variants = {
        "as released": data,
        "without recycling": data | {"stages": [first | {"restorer": None}, *later]},
        "one stage": data | {"stages": one},
        "original positions": data | {"positions": "original"},
        "separators dropped": data | {"separators": "drop"},
        "the same share of every crop": scored(per_crop=True),
        "t = 1.5": scored(threshold=1.5),
        "t = 3": scored(threshold=3.0),
        "t = 1.5, alpha = 0.3": scored(threshold=1.5, alpha=0.3),
        "t = 1.5, alpha = -0.3": scored(threshold=1.5, alpha=-0.3),
    }
    return {name: PruningConfig.parse(variant, name) for name, variant in variants.items()}


def by_type(types: list[str], correct: list[bool | None]) -> dict[str, float]:
    """Accuracy in percent by question type, in the order of the names."""
    found: dict[str, list[float]] = defaultdict(list)
    for kind, right in zip(types, correct, strict=True):
        found[kind].append(float(bool(right)))
    return {kind: 100 * mean(values) for kind, values in sorted(found.items())}


def table(rows: list[Row], types: list[str], unpruned: list[bool | None]) -> list[str]:
    """The Markdown table of one budget, best accuracy first, the unpruned model above."""
    kinds = sorted(set(types))
    whole = by_type(types, unpruned)
    lines = [
        "| preset | mean retention | gap | KL | agrees | accuracy | " + " | ".join(kinds) + " |",
        "|---" * (6 + len(kinds)) + "|",
        f"| *unpruned* | 100% | 0 | 0 | 100% | {accuracy(unpruned)} | "
        + " | ".join(f"{whole[kind]:.0f}" for kind in kinds)
        + " |",
    ]
    measured = [row for row in rows if row.results]
    for row in sorted(measured, key=lambda row: -sum(bool(r.correct) for r in row.results)):
        gaps = [r.gap for r in row.results]
        cells = by_type(types, [r.correct for r in row.results])
        lines.append(
            f"| `{row.name}` | {100 * row.retention:.2f}% | {mean(gaps):.4f} ± {error(gaps):.4f} "
            f"| {mean([r.kl for r in row.results]):.3f} "
            f"| {100 * mean([float(r.agrees) for r in row.results]):.1f}% "
            f"| {accuracy([r.correct for r in row.results])} | "
            + " | ".join(f"{cells[kind]:.0f}" for kind in kinds)
            + " |"
        )
    return lines


def accuracy(correct: list[bool | None]) -> str:
    values = [float(bool(right)) for right in correct]
    return f"{100 * mean(values):.1f} ± {100 * error(values):.1f}"


def notes(rows: list[Row]) -> list[str]:
    out = []
    for row in rows:
        placed = row.stages or "not measured"
        out.append(f"- `{row.name}`: {placed}{'; ' if row.note else ''}{row.note}")
    return out


def page(
    rows: list[Row], parts: list[Row], evaluator: Evaluator, command: str, seconds: float
) -> str:
    types = [str(sample.type) for sample in evaluator.samples]
    facts = evaluator.facts()
    lines = [
        f"# The methods on `{facts.name}`",
        "",
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}, in {seconds:.0f} s of "
        f"one core; torch {torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}. Model `{facts.name}`, {facts.num_layers} decoder layers, "
        f"{facts.image_tokens:.0f} image tokens a prompt; {len(types)} held-out samples (digest "
        f"`{evaluator.data.digest()[:12]}`).",
        "",
        "Every preset is moved onto the budget (mean retention over all decoder layers), its "
        "schedule's shape kept. Gap: 1 - cosine of the last prompt token's final state against "
        "the unpruned model; KL of the next token in nats; agrees: same most likely next token; "
        "accuracy: greedy decoding gives exactly the answer, in percent, then by question type. "
        "± is one standard error. Best accuracy first; nothing was tuned here but TopV's solver, "
        "which its paper does not establish: the preset's is the best of three on calibration "
        "data, and the others stand beside it.",
    ]
    for keep in dict.fromkeys(row.keep for row in rows):
        here = [row for row in rows if row.keep == keep]
        lines += ["", f"## {100 * keep:g}% kept", ""]
        lines += table(here, types, evaluator.unpruned_correct)
        lines += ["", *notes(here)]
    lines += [
        "",
        f"## Parts of VFlowOpt at {100 * parts[0].keep:g}%",
        "",
        "One part changed at a time. Views have 64 patches here and 729 in the release: its "
        "threshold of 35 mean attentions leaves no query, so all patches are.",
        "",
        *table(parts, types, evaluator.unpruned_correct),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--samples", type=int, default=480)
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--out", type=Path, help="page; by default docs/'s of the model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    _, held_out = load_calibration(shipped_data(arguments.model))
    loaded = load_model(arguments.model)
    evaluator = Evaluator(loaded, held_out.limit(arguments.samples), deepest=2)
    rows = []
    for keep in arguments.keep:
        for name in preset_names():
            found = [measure(evaluator, name, keep)]
            if name == "topv":
                found += solvers(evaluator, keep)
            for row in found:
                shown = accuracy([r.correct for r in row.results]) if row.results else row.note
                print(f"{keep:>5} {row.name:>10} {shown}", flush=True)
            rows += found
    variants = vflowopt_parts(evaluator.facts(), PARTS_KEEP)
    parts = [row_of(evaluator, n, PARTS_KEEP, "", config) for n, config in variants.items()]
    command = f"python benchmarks/methods.py --samples {len(evaluator.samples)}"
    command += f" --model {arguments.model}" if arguments.model != "tiny" else ""
    text = page(rows, parts, evaluator, command, time.process_time() - start)
    out = arguments.out or DOCS / f"methods-table{arguments.model.removeprefix('tiny')}.md"
    out.write_text(text, encoding="utf-8")
    print(f"written to {out}")
    finish(
        {
            f"{row.name}@{row.keep:g}": {
                "gap": mean([r.gap for r in row.results]),
                "accuracy": mean([float(bool(r.correct)) for r in row.results]),
                "mean_retention": row.retention,
            }
            for row in rows
            if row.results
        }
    )


if __name__ == "__main__":
    main()
