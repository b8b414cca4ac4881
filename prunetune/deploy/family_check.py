"""What a family has of what it needs, of a model whose weights are not read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.errors import ConfigError, UnsupportedModelError
from prunetune.files import read_plain
from prunetune.models.anatomy import Anatomy, anatomy, on_meta
from prunetune.models.skeleton import class_name, family_file, lineage, table_line, test_file

Row = tuple[str, str]
"""What is asked, and what was found."""

_NORMS = 2
"""Of a decoder layer: before the attention, and before the MLP."""
TABLE = Path("prunetune/families/__init__.py")
_FAMILIES, _TESTS = TABLE.parent, Path("tests/family_models")


@dataclass(frozen=True)
class Check:
    """What is known of a model class.

    Attributes:
        model_type: As in the config.
        supported: Whether there is a family for it.
        rows: What was found.
        problem: Why this model cannot be pruned; empty where it can, or could with a family.
        skeleton: The file of a family, where there is none and one would do.
        found: What it was made from.
    """

    model_type: str
    supported: bool
    rows: Sequence[Row]
    problem: str = ""
    skeleton: str = ""
    found: Anatomy | None = None


def check_folder(folder: str | Path) -> Check:
    """Return what is known of the model of a folder's ``config.json``; no weights are read.

    Raises:
        ConfigError: There is no config that transformers can read.
        UnsupportedModelError: It is no model of pictures and text, or of a class that cannot be
            pruned at all.
    """
    from prunetune.families import FAMILIES
    from prunetune.runtime.apply import REFUSED

    model = on_meta(folder)
    kind = str(model.config.model_type)
    if kind in REFUSED:
        raise UnsupportedModelError(f"{kind} cannot be pruned: {REFUSED[kind]}")
    if kind in FAMILIES:
        return _of_family(model)
    found = anatomy(model)
    if len(found.norms) < _NORMS:
        problem = (
            f"a layer of {found.decoder}.layers has {len(found.norms)} norm(s), and scores need "
            "one before the attention and one before the MLP; no family can add it"
        )
        rows = [("family", "none, and none is possible"), *_found(found)[1:]]
        return Check(kind, False, rows, problem=problem)
    return Check(kind, False, _found(found), skeleton=family_file(found), found=found)


def add_to(checkout: str | Path, check: Check) -> list[Path]:
    """Write a family that is not there yet into a checkout, and its line into the table.

    Returns:
        The files that were written.

    Raises:
        ConfigError: That is no checkout, or has such a family.
        UnsupportedModelError: No family would make this class prunable.
    """
    root = Path(checkout)
    if check.problem and not check.supported:
        raise UnsupportedModelError(f"--add: {check.model_type} cannot be pruned: {check.problem}")
    if check.found is None or check.supported:
        raise ConfigError(
            f"--add: {check.model_type} has a family already; there is nothing to add"
        )
    if not (root / TABLE).is_file() or not (root / _TESTS).is_dir():
        raise ConfigError(
            f"--add: received {str(checkout)!r}, allowed a checkout of prunetune: a folder with "
            f"{TABLE} and {_TESTS}"
        )
    name = f"{check.model_type}.py"
    files = {_FAMILIES / name: check.skeleton, _TESTS / name: test_file(check.found)}
    for path in files:
        if (root / path).exists():
            raise ConfigError(f"--add: {root / path} is there already; move it away first")
    for path, text in files.items():
        (root / path).write_text(text, "utf-8")
    lines = read_plain(root / TABLE).decode("utf-8").splitlines()
    entries = [k for k, line in enumerate(lines) if '": "prunetune.families.' in line]
    line = table_line(check.found)
    at = next((k for k in entries if lines[k] > line), entries[-1] + 1)
    lines.insert(at, line)
    (root / TABLE).write_text("\n".join(lines) + "\n", "utf-8")
    return [root / path for path in (*files, TABLE)]


def _of_family(model: Any) -> Check:
    from prunetune.runtime.apply import family_of

    kind = str(model.config.model_type)
    try:
        family = family_of(model)
    except UnsupportedModelError as error:
        # Who shows it says the rest.
        problem = str(error).partition(" cannot be pruned: ")[2] or str(error)
        return Check(kind, True, [("family", "there is one")], problem=problem)
    from prunetune.runtime.choice.taps import row_readable

    tells = family.tower_tells()
    seen = "can be read" if "vision_map" in tells else "can be read, no maps: no context_entropy"
    decoder = "can be read" if row_readable(family.layers) else "cannot: no last_query, no key_norm"
    last, depth = family.last_stage, len(family.layers)
    where = f"layers 0 to {depth - 1}" if last == depth - 1 else _narrow(last, family)
    rows = [
        ("family", type(family).__name__),
        ("decoder layers", f"{depth} {type(family.layers[0]).__name__}"),
        ("tokens can be dropped at", where),
        ("placeholders", ", ".join(f"{m} {k}" for m, k in family.placeholders.items())),
        (
            "vision tower",
            f"{type(family.tower).__name__}, {len(list(family.tower_layers()))} layers",
        ),
        (
            "its attention",
            seen if "vision_attention" in tells else "cannot: no cls_attention, no context_entropy",
        ),
        ("the decoder's attention", decoder),
        ("levels of pixels", family.resizing or "none: a fixed grid, or sizes nobody knows here"),
        ("positions", "original or packed" if not family.multimodal_positions else "original"),
    ]
    return Check(kind, True, rows)


def _narrow(last: int, family: Any) -> str:
    layers = "layer 0 only" if last == 0 else f"layers 0 to {last}"
    return f"{layers}: {family.limit}"


def _found(found: Anatomy) -> list[Row]:
    base = lineage(found)
    kinds = sorted(set(found.kinds)) or ["one kind"]
    return [
        ("family", f"none; {class_name(found)} on {base.name}, because {base.why}"),
        ("decoder layers", f"{found.decoder}.layers: {found.depth}, {', '.join(kinds)}"),
        ("norms of a layer", ", ".join(found.norms) or "none found"),
        ("vision tower", f"{found.tower or 'not found'}, layers at {found.tower_layers or '?'}"),
        (
            "its attention",
            f"{found.tower_attention or 'not found'}"
            + (" (queries, keys and values in one piece)" if found.fused else ""),
        ),
        ("projectors", ", ".join(found.projectors) or "not found"),
        ("image token", found.image_token or "not found: say image_token_id yourself"),
        ("encoder takes", ", ".join(found.inputs)),
        ("videos", found.encoders.get("video", "none")),
        ("pictures attend both ways", f"perhaps: by {found.blocks}" if found.blocks else "no"),
    ]
