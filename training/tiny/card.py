"""The model card of `tiny`, with the figures that `evaluate --json` measured."""

from pathlib import Path

TEMPLATE = Path(__file__).with_name("card.md")
SECTIONS = (
    ("by_type", "Type, 128 x 128"),
    ("by_size", "Size (width x height), all types"),
    ("by_type_other_sizes", "Type, all other sizes"),
)


def figure(part: dict | None) -> str:
    """An accuracy with its number of questions."""
    return f"{part['accuracy']:.1f} ({part['questions']})" if part else ""


def table(title: str, shipped: dict, other: dict, columns: list[str]) -> str:
    """A Markdown table of one section."""
    rows = [f"| {name} | {figure(shipped[name])} | {figure(other.get(name))} |" for name in shipped]
    return "\n".join([f"| {title} | {columns[0]} | {columns[1]} |", "|---|---|---|", *rows])


def tables(shipped: dict, other: dict, columns: list[str]) -> str:
    """All sections of an evaluation, beside those of another model."""
    names = ("128x128, one-word types", "128x128, all types", "all questions")
    overall = [{n: found[n] for n in names if n in found} for found in (shipped, other)]
    first = table("Overall", *overall, columns)
    others = [table(title, shipped[key], other[key], columns) for key, title in SECTIONS]
    return "\n\n".join([first, *others])


def card(evaluations: dict[str, tuple[dict, dict]], size: float, notes: dict) -> str:
    """The whole model card.

    Args:
        evaluations: Of each kind of pictures, of the shipped weights and of others.
        size: Of the weights, in MiB.
        notes: Columns (two headings) and the texts of the template.
    """
    parts = []
    for kind, (shipped, other) in evaluations.items():
        parts += [f"### {kind.capitalize()} pictures", tables(shipped, other, notes["columns"])]
    return TEMPLATE.read_text(encoding="utf-8").format(
        size=size, image_tokens=336, tables="\n\n".join(parts), **notes
    )
