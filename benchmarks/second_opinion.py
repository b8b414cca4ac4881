"""The same table for every witness: does what wins on one model win on another?

A witness is a model with a data set that it can answer. For each budget it is measured unpruned,
under every preset, under every selector by its own defaults (one stage before the language model,
its scores the CLS attention where the model has one), under `resize`, under three draws of `random`
and under searches with and without mass, three seeds each. Searches see the calibration side only;
the table is of the held-out side.

    python benchmarks/second_opinion.py --witness tiny-1
    python benchmarks/second_opinion.py --witness tiny-1 \
        busy=runs/tiny/model,calibration_data/busy --keeps 0.25 0.1
    python benchmarks/second_opinion.py --report

What searches.py has searched for the same witness is taken from its rows with --searched.

One JSON line a case is appended to --out; what is there is not measured again, so a killed run goes
on and several processes may share the work. --docs writes the page.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import finish
from ledger import Ledger, read, whose
from second_opinion_page import page

from prunetune.budget import latest_first_layer
from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig, Stage
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.scores import image_ids, measure
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.presets import preset_names
from prunetune.scorers import SCORERS
from prunetune.selectors import SELECTORS
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.outcome.baselines import resize_at
from prunetune.study.outcome.selection import choose
from prunetune.study.study import run_trials
from prunetune.study.trials.trials import presets_at

DOCS = Path(__file__).resolve().parents[1] / "docs" / "second-opinion.md"
PARTS = {"with mass": "all", "without mass": "flash"}
"""What a search may use: what any attention kernel can do is everything but mass."""
Row = dict[str, Any]
Made = tuple[PruningConfig | None, str]
"""A config with what had to change; None with the reason why there is none."""


@dataclass(frozen=True)
class Witness:
    """A model with its data."""

    name: str
    model: str
    data: str

    @classmethod
    def parse(cls, text: str) -> "Witness":
        """Read ``NAME``, ``NAME=MODEL`` or ``NAME=MODEL,DATA``."""
        name, _, rest = text.partition("=")
        model, _, data = rest.partition(",")
        model = model or name
        return cls(name, model, data or shipped_data(model))


@dataclass(frozen=True)
class Case:
    """One row of a table: its name, its group, and what makes its config."""

    name: str
    group: str
    make: Callable[[], Made]


class Measured:
    """A witness at one budget: both sides, and the space that configs lie in."""

    def __init__(
        self, witness: Witness, keep: float, samples: int | None, known: list[Row] | None = None
    ) -> None:
        loaded = load_model(witness.model)
        calibration, held_out = load_calibration(witness.data, samples=samples)
        if samples is not None:
            held_out = held_out.limit(samples)
        depth = loaded.model.config.get_text_config().num_hidden_layers
        deepest = max(0, min(latest_first_layer(keep, depth), depth - 1))
        self.witness, self.keep, self.known = witness, keep, known or []
        self.evaluator = Evaluator(loaded, calibration, deepest=deepest)
        self.held_out = Evaluator(loaded, held_out, deepest=1)
        self.space = Space.of(StudySpec(keep=keep), self.evaluator.facts())

    def row(self, case: Case) -> Row:
        """What a case's config does to every held-out sample."""
        config, note = case.make()
        row: Row = {"name": case.name, "group": case.group, "note": note}
        if config is not None:
            results = measure(self.held_out, config)
            row["samples"] = [
                [round(r.gap, 6), round(r.kl, 6), int(bool(r.correct))] for r in results
            ]
            row["config"] = config.model_dump(mode="json", exclude={"provenance"})
        return row

    def unpruned(self) -> Row:
        """The model as it is; what the samples are stands beside it."""
        right = self.held_out.unpruned_correct
        return {
            "name": "unpruned",
            "group": "unpruned",
            "note": "",
            "samples": [[0.0, 0.0, int(bool(known))] for known in right],
            "types": [str(sample.type) for sample in self.held_out.samples],
            "images": list(image_ids(self.held_out.samples)),
            "digest": self.held_out.data.digest(),
        }

    def cases(self, options: argparse.Namespace) -> Iterator[Case]:
        """All rows of the table but the unpruned model's."""
        for name in preset_names():
            yield Case(name, "preset", lambda name=name: self.preset(name))
        yield Case("resize", "control", self.resized)
        for seed in range(1, options.seeds):
            yield Case(f"random, seed {seed}", "control", lambda seed=seed: self.random(seed))
        for name in SELECTORS:
            yield Case(f"selector {name}", "selector", lambda name=name: self.selector(name))
        for seed, how in product(range(options.seeds if options.trials else 0), PARTS):
            yield Case(
                f"searched {how}, seed {seed}",
                f"searched {how}",
                lambda seed=seed, how=how: self.searched(seed, how, options.trials),
            )

    def preset(self, name: str) -> Made:
        """Move a preset onto the budget."""
        [found] = presets_at([name], self.space)
        return found.config, found.note

    def resized(self) -> Made:
        """Show the largest pictures that meet the budget."""
        found = resize_at(self.space, self.evaluator)
        return found.config, found.note

    def random(self, seed: int) -> Made:
        """Draw the control `random` anew."""
        config, note = self.preset("random")
        if config is None:
            return None, note
        data = config.model_dump(mode="json")
        for stage in data["stages"]:
            stage["scorers"][0]["seed"] = seed
        return PruningConfig.parse(data, "random"), note

    def selector(self, name: str) -> Made:
        """Use a selector by its own defaults in one stage before the language model."""
        scored = "cls_attention" in self.space.facts.scorers
        scorers = (SCORERS.get("cls_attention")(name="cls_attention"),) if scored else ()
        chosen = SELECTORS.get(name)(name=name)
        stage = Stage(layer=0, retention=self.keep, selector=chosen, scorers=scorers)
        model = self.space.model_ref()
        return PruningConfig(model=model, separators="drop", stages=(stage,)), ""

    def searched(self, seed: int, how: str, trials: int) -> Made:
        """Search on the calibration side, unless searches.py has searched the same."""
        same = {"metric": "cosine", "parts": PARTS[how], "keep": self.keep, "seed": seed}
        for row in self.known:
            if same.items() <= row.items() and row["trials"] == trials:
                return PruningConfig.parse(row["config"]), f"trial {row['trial']} of {trials}"
        spec = StudySpec(
            model=self.witness.model,
            data=self.witness.data,
            keep=self.keep,
            seed=seed,
            trials=trials,
            space=SpaceSpec(parts=PARTS[how]),
        )
        with tempfile.TemporaryDirectory() as folder:
            study = run_trials(spec, self.evaluator, out=Path(folder))
            winner = choose(study, spec, self.evaluator)
        return winner.config, f"trial {winner.trial} of {trials}"


def run(witness: Witness, keep: float, options: argparse.Namespace) -> None:
    """Measures what is not in --out yet; each row appears whole."""
    about = whose(witness.model, witness.data, options.samples)
    ledger = Ledger(options.out, about, {"witness": witness.name})

    def known() -> set[str]:
        return {row["name"] for row in ledger.rows() if row["keep"] == keep}

    # Of the searches of other scripts those that were run on the very same.
    searched = [row for path in options.searched for row in read(path) if row["about"] == about]
    measured = Measured(witness, keep, options.samples, searched)
    if "unpruned" not in known():
        ledger.add({"keep": keep, **measured.unpruned()})
    for case in measured.cases(options):
        if case.name in known() or not any(part in case.name for part in options.only or [""]):
            continue
        ledger.add({"keep": keep, **measured.row(case)})
        print(f"{witness.name} {keep:g} {case.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--witness", nargs="+", type=Witness.parse, default=[])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1, 0.05])
    parser.add_argument("--seeds", type=int, default=3, help="of searches and of random")
    parser.add_argument("--trials", type=int, default=100, help="of a search; 0: none")
    parser.add_argument("--samples", type=int, help="a side; by default all")
    parser.add_argument("--only", nargs="+", help="cases whose name has one of these in it")
    parser.add_argument(
        "--searched",
        nargs="*",
        type=Path,
        default=[],
        help="rows of searches.py",
    )
    parser.add_argument("--out", type=Path, default=Path("second-opinion.jsonl"))
    parser.add_argument("--docs", default=str(DOCS), help="page to write; '' for none")
    parser.add_argument("--report", action="store_true", help="only write the page of --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for witness, keep in () if options.report else product(options.witness, options.keeps):
        run(witness, keep, options)
    found = read(options.out)
    text = page(found)
    if options.docs:
        Path(options.docs).write_text(text, encoding="utf-8")
    finish({"rows": len(found), "witnesses": sorted({r["witness"] for r in found})})


if __name__ == "__main__":
    main()
