"""Writes `calibration_data/tiny/`: 40 calibration and 120 held-out pictures with questions.

Run `python -m training.tiny.make_calibration --out calibration_data/tiny`. With `--fresh SEED` it
writes a further set like `held_out` into `--out`, of pictures that no other use has drawn.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.tiny.pictures import Picture, draw_picture, load_digit_bank
from training.tiny.questions import ONE_WORD_TYPES, Asker, Question

# first number of the seed of everything drawn: no two uses share a picture
SEEDS = {"training": 0, "calibration": 1, "held_out": 2, "evaluation": 3}
SPLITS = {"calibration": (40, "train"), "held_out": (120, "held_out")}
QUESTIONS_PER_PICTURE = 4
# (width, height) of every fifth picture, in turn
OTHER_SIZES = ((128, 64), (64, 128), (128, 96), (96, 128), (150, 100), (100, 140))


def picture_size(index: int) -> tuple[int, int]:
    """Size of a split's picture: four in five are 128 x 128."""
    return (128, 128) if index % 5 != 4 else OTHER_SIZES[index // 5 % len(OTHER_SIZES)]


def picture_of(split: str, index: int, seed: int | None = None) -> Picture:
    """The split's picture, always the same one; `seed` draws another split's like it."""
    rng = np.random.default_rng([SEEDS[split] if seed is None else seed, index])
    bank = load_digit_bank(SPLITS[split][1])
    return draw_picture(rng, bank, *picture_size(index))


def questions_of(
    split: str, index: int, picture: Picture, seed: int | None = None
) -> list[Question]:
    """Four different questions; the types rotate, every second picture asks for a list."""
    rng = np.random.default_rng([SEEDS[split] if seed is None else seed, index, 1])
    first = index * QUESTIONS_PER_PICTURE
    wanted = [ONE_WORD_TYPES[(first + k) % len(ONE_WORD_TYPES)] for k in range(4)]
    if index % 2 == 1:
        wanted[index // 2 % 4] = "list"
    asker, asked = Asker(picture, rng), []
    spare = [kind for kind in rng.permutation(ONE_WORD_TYPES) if kind not in wanted]
    for kind in [*wanted, *spare, *spare]:
        question = asker.ask(str(kind))
        if question and question.words not in [q.words for q in asked]:
            asked.append(question)
        if len(asked) == QUESTIONS_PER_PICTURE:
            return asked
    raise RuntimeError(f"picture {index} of {split} allows only {len(asked)} questions")


def write_split(split: str, folder: Path, most: int | None = None, seed: int | None = None) -> int:
    """Writes a split's pictures, or the first of them, and their rows; returns how many rows.

    With `seed` it is another split like it: fresh pictures and questions.
    """
    if seed is not None and seed in SEEDS.values():
        raise SystemExit(f"--fresh: received {seed}, allowed any but {sorted(SEEDS.values())}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(SPLITS[split][0])[:most]:
        name = split if seed is None else f"fresh-{seed}"
        picture, image_id = picture_of(split, index, seed), f"{name}-{index:03d}"
        Image.fromarray(picture.pixels).save(folder / f"{image_id}.png", optimize=True)
        for question in questions_of(split, index, picture, seed):
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
    parser.add_argument("--pictures", type=int, help="of each split at most; by default all")
    parser.add_argument("--fresh", type=int, metavar="SEED", help="write only a fresh set, of it")
    args = parser.parse_args()
    if args.fresh is not None:
        print(f"{write_split('held_out', args.out, args.pictures, args.fresh)} rows")
        return
    for split in SPLITS:
        print(f"{split}: {write_split(split, args.out / split, args.pictures)} rows")


if __name__ == "__main__":
    main()
