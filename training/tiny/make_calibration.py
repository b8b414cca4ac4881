"""Writes `calibration_data/tiny/`: 40 calibration and 120 held-out pictures with questions.

Run `python -m training.tiny.make_calibration --out calibration_data/tiny`. With `--kind busy` the
pictures are of the harder kind. With `--fresh SEED` it writes a further set like `held_out` into
`--out`, of pictures that no other use has drawn.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.tiny.kinds import ALL_SEEDS, KINDS
from training.tiny.pictures import Picture, load_digit_bank
from training.tiny.questions import Question

SPLITS = {"calibration": (40, "train"), "held_out": (120, "held_out")}
QUESTIONS_PER_PICTURE = 4
# (width, height) of every fifth picture, in turn
OTHER_SIZES = ((128, 64), (64, 128), (128, 96), (96, 128), (150, 100), (100, 140))


def picture_size(index: int) -> tuple[int, int]:
    """Size of a split's picture: four in five are 128 x 128."""
    return (128, 128) if index % 5 != 4 else OTHER_SIZES[index // 5 % len(OTHER_SIZES)]


def picture_of(split: str, index: int, seed: int | None = None, kind: str = "plain") -> Picture:
    """The split's picture, always the same one; `seed` draws another split's like it."""
    rng = np.random.default_rng([KINDS[kind].seed(split) if seed is None else seed, index])
    bank = load_digit_bank(SPLITS[split][1])
    return KINDS[kind].draw(rng, bank, *picture_size(index))


def questions_of(
    split: str, index: int, picture: Picture, seed: int | None = None, kind: str = "plain"
) -> list[Question]:
    """Four different questions; the types rotate, every second picture asks for a list."""
    rng = np.random.default_rng([KINDS[kind].seed(split) if seed is None else seed, index, 1])
    rotating = [name for name in KINDS[kind].types if name != "list"]
    first = index * QUESTIONS_PER_PICTURE
    wanted = [rotating[(first + k) % len(rotating)] for k in range(4)]
    if index % 2 == 1:
        wanted[index // 2 % 4] = "list"
    asker, asked = KINDS[kind].asker(picture, rng), []
    spare = [name for name in rng.permutation(rotating) if name not in wanted]
    # Of a picture that allows few questions of some types, more of the others.
    for name in [*wanted, *spare, *spare, *rotating * 4]:
        question = asker.ask(str(name))
        if question and question.words not in [q.words for q in asked]:
            asked.append(question)
        if len(asked) == QUESTIONS_PER_PICTURE:
            return asked
    raise RuntimeError(f"picture {index} of {split} allows only {len(asked)} questions")


def write_split(
    split: str,
    folder: Path,
    most: int | None = None,
    seed: int | None = None,
    kind: str = "plain",
) -> int:
    """Writes a split's pictures, or the first of them, and their rows; returns how many rows.

    With `seed` it is another split like it: fresh pictures and questions.
    """
    if seed is not None and seed in ALL_SEEDS:
        raise SystemExit(f"--fresh: received {seed}, allowed any but {sorted(ALL_SEEDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(SPLITS[split][0])[:most]:
        name = split if seed is None else f"fresh-{seed}"
        picture, image_id = picture_of(split, index, seed, kind), f"{name}-{index:03d}"
        Image.fromarray(picture.pixels).save(folder / f"{image_id}.png", optimize=True)
        for question in questions_of(split, index, picture, seed, kind):
            row = {
                "file_name": f"{image_id}.png",
                "question": " ".join(question.words),
                "answer": " ".join(question.answer),
                "type": question.type,
                "image_id": image_id,
            }
            rows.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("calibration_data/tiny"))
    parser.add_argument("--kind", choices=KINDS, default="plain", help="of pictures")
    parser.add_argument("--pictures", type=int, help="of each split at most; by default all")
    parser.add_argument("--fresh", type=int, metavar="SEED", help="write only a fresh set, of it")
    args = parser.parse_args()
    if args.fresh is not None:
        written = write_split("held_out", args.out, args.pictures, args.fresh, args.kind)
        print(f"{written} rows")
        return
    for split in SPLITS:
        written = write_split(split, args.out / split, args.pictures, kind=args.kind)
        print(f"{split}: {written} rows")


if __name__ == "__main__":
    main()
