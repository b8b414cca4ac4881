"""What a search's starts are worth before anything is searched, on calibration data only.

Every start of `prunetune search` (space/starts.py) as the space holds it, on each model's own
calibration set: the gap that decides in which order they are tried and which of them stay.

    python benchmarks/starts.py
    python benchmarks/starts.py --models tiny --keeps 0.1
"""

import argparse

import torch
from common import finish, markdown
from searches import evaluators

from prunetune.measure.scores import Scores, measure
from prunetune.space.space import Space
from prunetune.space.starts import first_starts, starts
from prunetune.spec import StudySpec


def gaps(model: str, keep: float, samples: int | None) -> dict[str, float]:
    """Mean gap of every start, by name."""
    evaluator, _ = evaluators(keep, samples, model=model)
    space = Space.of(StudySpec(keep=keep), evaluator.facts())
    found = {}
    for name, units in {**first_starts(space), **starts(space)}.items():
        results = measure(evaluator, space.decode(units), answers=False)
        found[name] = Scores.of(results).gap
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-1"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.25, 0.1, 0.05])
    parser.add_argument("--samples", type=int, help="of the calibration set; by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [(model, keep) for model in options.models for keep in options.keeps]
    found = {column: gaps(*column, options.samples) for column in columns}
    names = dict.fromkeys(name for mine in found.values() for name in mine)
    table = [
        (name, *(f"{found[c][name]:.4f}" if name in found[c] else "-" for c in columns))
        for name in names
    ]
    print("\n".join(markdown(("start", *(f"{m}, {k:g}" for m, k in columns)), table)))
    finish({"starts": len(names), "columns": len(columns)})


if __name__ == "__main__":
    main()
