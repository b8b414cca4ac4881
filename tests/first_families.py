"""Which families a test that runs for all of them runs for in ``make test``; imports no model."""

from collections.abc import Collection, Iterable
from pathlib import Path

NAMES = frozenset(path.stem for path in (Path(__file__).parent / "family_models").glob("[!_]*.py"))
FIRST = frozenset(
    {
        "gemma3",  # windows; pictures see each other
        "gemma4",  # states beside the layers'
        "glm4v",
        "idefics3",
        "internvl",
        "kimi_k25",  # latent attention
        "llava",
        "llava_next",
        "mistral3",
        "paligemma",  # a prompt sees itself whole
        "qwen2_5_vl",
        "qwen3_5",  # hybrid
        "qwen3_vl",  # features enter deeper layers
    }
)
"""One of each base in ``prunetune/families/bases``, and each that has what no other has. The others
follow in ``make test-families``: a new family makes ``make test`` no longer."""

Case = tuple[str, Collection[object]]
"""A test without its parameters, and the values of these."""


def further(cases: Iterable[Case]) -> list[bool]:
    """Return which cases can wait: of another family, where a first one has the same test."""
    listed = [(test, {v for v in values if isinstance(v, str)} & NAMES) for test, values in cases]
    of_first = {test for test, names in listed if names & FIRST}
    return [bool(names) and not names & FIRST and test in of_first for test, names in listed]
