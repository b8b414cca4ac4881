"""Writes `calibration_data/tiny/`: 40 calibration and 120 held-out pictures with questions.

Run `python -m training.tiny.make_calibration --out calibration_data/tiny`.
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


def picture_of(split: str, index: int) -> Picture:
    """The split's picture, always the same one."""
    rng = np.random.default_rng([SEEDS[split], index])
    bank = load_digit_bank(SPLITS[split][1])
    return draw_picture(rng, bank, *picture_size(index))


def questions_of(split: str, index: int, picture: Picture) -> list[Question]:
    """Four different questions; the types rotate, every second picture asks for a list."""
    rng = np.random.default_rng([SEEDS[split], index, 1])
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


def write_split(split: str, folder: Path, most: int | None = None) -> int:
    """Writes a split's pictures, or the first of them, and their rows; returns how many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(SPLITS[split][0])[:most]:
        picture, image_id = picture_of(split, index), f"{split}-{index:03d}"
        Image.fromarray(picture.pixels).save(folder / f"{image_id}.png", optimize=True)
        for question in questions_of(split, index, picture):
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
    args = parser.parse_args()
    for split in SPLITS:
        print(f"{split}: {write_split(split, args.out / split, args.pictures)} rows")


if __name__ == "__main__":
    main()
