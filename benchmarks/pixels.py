"""Fewer pixels against fewer tokens on the embedded model, held out: a table a budget.

`resize` (smaller pictures, nothing pruned, where a level reaches the budget), `pool`, `uniform`,
the other presets, and searches without and with `pixels`: gap, KL, accuracy by kind of question,
and FLOPs of tower and language model before the first token, over unpruned.

One JSON line a row is appended to --out; what is there is not measured again, so a killed run goes
on. `--docs FILE` writes the tables between its `pixels` marks.

    python benchmarks/pixels.py                        # four budgets, three seeds
    python benchmarks/pixels.py --keeps 0.5 --seeds 0 --presets uniform pool
    python benchmarks/pixels.py --report
"""

import argparse
import tempfile
from collections import defaultdict
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from common import finish, markdown, name_model, write_section
from ledger import Ledger, whose
from searches import evaluators

from prunetune.budget import stated_retention
from prunetune.config import PruningConfig
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.scores import Scores, measure
from prunetune.presets import preset_names
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.outcome.baselines import resize_at
from prunetune.study.outcome.selection import choose, flops_of, with_provenance
from prunetune.study.prepare import first_stages
from prunetune.study.study import run_trials
from prunetune.study.trials.trials import presets_at

DOCS = Path(__file__).resolve().parents[1] / "docs" / "pixels-table.md"
Row = dict[str, Any]


def by_kind(held_out: Evaluator, config: PruningConfig) -> Row:
    """Return scores on the held-out split, and accuracy by kind of question."""
    results = measure(held_out, config)
    kinds: dict[str, list[bool]] = defaultdict(list)
    for sample, result in zip(held_out.samples, results, strict=True):
        kinds[str(sample.type)].append(bool(result.correct))
    return {
        "scores": asdict(Scores.of(results)),
        "kinds": {kind: sum(right) / len(right) for kind, right in sorted(kinds.items())},
    }


def controls(
    keep: float, pair: tuple[Evaluator, Evaluator], presets: list[str], ledger: Ledger
) -> None:
    evaluator, held_out = pair
    spec = StudySpec(keep=keep)
    space = Space.of(spec, evaluator.facts())
    known = {row["name"] for row in ledger.rows() if row["keep"] == keep}
    names = [name for name in presets if name not in known]
    for preset in [resize_at(space, evaluator), *presets_at(names, space)]:
        if preset.name in known:
            continue
        row: Row = {"keep": keep, "name": preset.name, "note": preset.note}
        if preset.config is not None:
            row |= by_kind(held_out, preset.config)
            row["flops"] = flops_of(preset.config, space.facts, preset.tokens, evaluator)
        ledger.add(row)


def searched(
    keep: float, seed: int, pixels: bool, pair: tuple[Evaluator, Evaluator], trials: int
) -> Row:
    evaluator, held_out = pair
    spec = StudySpec(keep=keep, seed=seed, trials=trials, space=SpaceSpec(pixels=pixels))
    if pixels:
        # What levels leave of the tokens belongs to the references.
        deepest, levels = first_stages(spec, evaluator.loaded, evaluator.data)
        evaluator = Evaluator(evaluator.loaded, evaluator.data, deepest=deepest, levels=levels)
    with tempfile.TemporaryDirectory() as folder:
        study = run_trials(spec, evaluator, out=Path(folder))
        winner = choose(study, spec, evaluator)
    found = by_kind(held_out, winner.config)
    space = Space.of(spec, evaluator.facts())
    made = with_provenance(study, spec, space, winner, evaluator, winner.results)
    return {
        "keep": keep,
        "name": f"searched{', with pixels' if pixels else ''}, seed {seed}",
        "note": "" if winner.config.pixels is None else winner.config.pixels.shown,
        "retention": stated_retention(made),
        "config": winner.config.model_dump(mode="json", exclude={"provenance"}),
        "flops": made.provenance.flops,
        **found,
    }


def report(found: list[Row], model: str) -> list[str]:
    lines = [
        f"`{model}`, {datetime.now(UTC):%Y-%m-%d}: the held-out split. FLOPs are those before",
        "the first token over unpruned: vision tower, language model, both.",
    ]
    for keep in sorted({row["keep"] for row in found}, reverse=True):
        mine = [row for row in found if row["keep"] == keep]
        known = [row for row in mine if "scores" in row]
        kinds = list(known[0]["kinds"]) if known else []
        table = []
        for row in sorted(known, key=lambda row: row["scores"]["gap"]):
            scores = row["scores"]
            table.append(
                (
                    f"{row['name']}{' (' + row['note'] + ')' if row['note'] else ''}",
                    f"{scores['gap']:.4f}",
                    f"{scores['kl']:.3f}",
                    f"{100 * scores['accuracy']:.1f}",
                    *shares(row.get("flops")),
                    *(f"{100 * row['kinds'][kind]:.0f}" for kind in kinds),
                )
            )
        columns = ("", "gap", "KL", "accuracy", "tower", "language", "both", *kinds)
        lines += [f"\n### Mean retention {keep:g}\n", *markdown(columns, table)]
        lines += [f"\n- {row['name']}: {row['note']}" for row in mine if "scores" not in row]
    return lines


def shares(flops: dict[str, float] | None) -> tuple[str, str, str]:
    if not flops:
        return ("-", "-", "-")
    tower, language, both = (
        f"{flops[name] / flops[f'unpruned_{name}']:.2f}"
        for name in ("tower", "language_model", "sum")
    )
    return tower, language, both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_model(parser)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--presets", nargs="*", default=list(preset_names()))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--samples", type=int, help="a split; by default all")
    parser.add_argument("--out", type=Path, default=Path("pixels.jsonl"))
    parser.add_argument("--docs", default=str(DOCS), help="page to write into; '' for none")
    parser.add_argument("--report", action="store_true", help="only write the tables of --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = None if options.report else whose(options.model, samples=options.samples)
    ledger = Ledger(options.out, about)
    for keep in () if options.report else options.keeps:
        pair = evaluators(keep, options.samples, model=options.model)
        controls(keep, pair, options.presets, ledger)
        for seed in options.seeds:
            for pixels in (False, True):
                name = f"searched{', with pixels' if pixels else ''}, seed {seed}"
                if any(r["keep"] == keep and r["name"] == name for r in ledger.rows()):
                    continue
                row = searched(keep, seed, pixels, pair, options.trials)
                ledger.add(row)
                print(f"{keep:g} {name}: gap {row['scores']['gap']:.4f}", flush=True)
    lines = report(ledger.rows(), ledger.model)
    print("\n".join(lines))
    if options.docs:
        write_section(Path(options.docs), "pixels", lines)
    finish({"rows": len(ledger.rows()), "out": str(options.out)})


if __name__ == "__main__":
    main()
