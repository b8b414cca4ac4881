"""Composites of one to four objects on a photograph, with questions: what, where, how many, is.

    ENVIRONMENT/bin/python -m benchmarks.real_parts.composites --out FOLDER --files FOLDER

writes a calibration set, and a held-out one of objects and photographs that training never sees.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.real_parts import stand_in
from benchmarks.real_parts.cutouts import Sources, read_sources

CORNERS = ("top left", "top right", "bottom left", "bottom right")
TYPES = ("what", "where", "count", "exists")
SEEDS = {"train": 20, "calibration": 21, "held_out": 22, "progress": 23, "align": 24}
SIZE = 224
SIDES = {"calibration": ("train", 40), "held_out": ("held_out", 120)}


@dataclass(frozen=True)
class Composite:
    """A picture; the class of the object in each corner that has one, and how it covers pixels."""

    image: Image.Image
    corners: dict[str, str]
    covers: dict[str, Image.Image]


@dataclass(frozen=True)
class Question:
    """A question with its answer."""

    type: str
    text: str
    answer: str


def compose(rng: np.random.Generator, sources: Sources, size: int) -> Composite:
    """Draws a picture of size x size pixels."""
    scene = sources.backgrounds[int(rng.integers(len(sources.backgrounds)))]
    side = int(min(scene.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in scene.size)
    canvas = scene.crop((left, top, left + side, top + side)).resize((size, size)).convert("RGBA")
    places = rng.permutation(len(CORNERS))[: int(rng.integers(1, len(CORNERS) + 1))]
    names = [name for name, objects in sources.objects.items() if objects]
    corners, covers = {}, {}
    for place in places:
        name = names[int(rng.integers(len(names)))]
        objects = sources.objects[name]
        image = objects[int(rng.integers(len(objects)))]
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        long = size // 2 * rng.uniform(0.6, 0.96) / max(image.size)
        width, height = (max(1, int(length * long)) for length in image.size)
        x = int(rng.integers(size // 2 - width + 1)) + size // 2 * int(place % 2)
        y = int(rng.integers(size // 2 - height + 1)) + size // 2 * int(place // 2)
        placed = Image.new("RGBA", canvas.size)
        placed.paste(image.resize((width, height)), (x, y))
        canvas.alpha_composite(placed)
        corners[CORNERS[place]], covers[CORNERS[place]] = name, placed.getchannel("A")
    return Composite(canvas.convert("RGB"), corners, covers)


def ask(rng: np.random.Generator, picture: Composite, kind: str, classes: list[str]) -> Question:
    """A question of a type; where the type needs what the picture lacks, whether something is."""
    counted = Counter(picture.corners.values())
    unique = [corner for corner, name in picture.corners.items() if counted[name] == 1]
    if kind == "where" and unique:
        corner = unique[int(rng.integers(len(unique)))]
        return Question("where", f"Where is the {picture.corners[corner]}?", corner)
    if kind == "what":
        corners = list(picture.corners)
        corner = corners[int(rng.integers(len(corners)))]
        return Question("what", f"What is at the {corner}?", picture.corners[corner])
    if kind == "count":
        return Question("count", "How many objects are there?", str(len(picture.corners)))
    shown = rng.random() < 0.5
    absent = [name for name in classes if name not in counted]
    shown = shown or not absent
    options = sorted(counted) if shown else absent
    name = options[int(rng.integers(len(options)))]
    article = "an" if name[0] in "aeiou" else "a"
    return Question("exists", f"Is there {article} {name}?", "yes" if shown else "no")


def samples(
    seed: list[int], sources: Sources, size: int, count: int
) -> list[tuple[Composite, Question]]:
    """`count` pictures with a question each, the types in turn; a seed gives the same ones."""
    rng, found = np.random.default_rng(seed), []
    for index in range(count):
        picture = compose(rng, sources, size)
        kind = TYPES[index % len(TYPES)]
        found.append((picture, ask(rng, picture, kind, list(sources.objects))))
    return found


def every_question(
    rng: np.random.Generator, picture: Composite, classes: list[str]
) -> list[Question]:
    """One question of each type that the picture allows."""
    return list({q.text: q for q in (ask(rng, picture, k, classes) for k in TYPES)}.values())


def lessons(
    seed: list[int], sources: Sources, size: int, count: int
) -> list[tuple[Composite, list[Question]]]:
    """`count` pictures with all questions, in a random order; a seed gives the same ones."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        picture = compose(rng, sources, size)
        asked = every_question(rng, picture, list(sources.objects))
        found.append((picture, [asked[i] for i in rng.permutation(len(asked))]))
    return found


def write_sets(folder: Path, sources: dict[str, Sources], size: int) -> None:
    """Writes a calibration and a held-out set as `prunetune --data` reads them."""
    for split, (side, count) in SIDES.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for index in range(count):
            rng = np.random.default_rng([SEEDS[split], index])
            picture = compose(rng, sources[side], size)
            name = f"{split}-{index:03d}.png"
            picture.image.save(folder / split / name)
            classes = list(sources[side].objects)
            rows += [
                {"file_name": name, "question": q.text, "answer": q.answer, "type": q.type}
                for q in every_question(rng, picture, classes)
            ]
        text = "".join(json.dumps({**row, "image_id": row["file_name"]}) + "\n" for row in rows)
        (folder / split / "metadata.jsonl").write_text(text, encoding="utf-8")


def sources_of(files: Path | None) -> dict[str, Sources]:
    """Both sides' sources: of the unpacked packages, or the stand-ins."""
    sides = ("train", "held_out")
    if files is None:
        return {side: stand_in.sources(side) for side in sides}
    return {side: read_sources(files, side) for side in sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--files", type=Path, help="the unpacked packages; none: stand-ins")
    options = parser.parse_args()
    size = SIZE if options.files else stand_in.SIZE
    write_sets(options.out, sources_of(options.files), size)


if __name__ == "__main__":
    main()
