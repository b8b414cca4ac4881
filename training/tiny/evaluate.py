"""Held-out accuracy of `tiny` by question type and by picture size.

    python -m training.tiny.evaluate prunetune/embedded/tiny --json

An answer is right when greedy `generate` gives exactly its words. Nine questions share one forward
here: right under teacher forcing (every word and the end) is the same as right under generate, and
packing is exact. `--generate N` also sends the first N questions through the genuine `generate`.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import LlavaNextForConditionalGeneration

from training.tiny.batches import PREFIX, empty_row, stack, write
from training.tiny.fast import Forward
from training.tiny.kinds import KINDS
from training.tiny.losses import text_inputs
from training.tiny.model import processor, prompt
from training.tiny.pictures import Picture, load_digit_bank
from training.tiny.questions import ALL_TYPES, ONE_WORD_TYPES, Question

# (width, height); the last three are rescaled by the processor, as any photo would be
OTHER_SIZES = ((128, 64), (64, 128), (128, 96), (96, 128), (150, 100), (100, 140), (256, 192))


@dataclass(frozen=True)
class Outcome:
    """One answered question."""

    size: str
    type: str
    right: bool


def evaluation_picture(
    size: tuple[int, int], index: int, kind: str = "plain"
) -> tuple[Picture, list[Question]]:
    """A held-out picture with one question of every type that it allows."""
    asked_of, bank = KINDS[kind], load_digit_bank("held_out")
    seed = [asked_of.seed("evaluation"), *size, index]
    picture = asked_of.draw(np.random.default_rng(seed), bank, *size)
    asker = asked_of.asker(picture, np.random.default_rng([*seed, 1]))
    questions = [asker.ask(name) for name in asked_of.types]
    return picture, [question for question in questions if question]


class Judge:
    """Asks a model about pictures."""

    def __init__(self, model: LlavaNextForConditionalGeneration) -> None:
        self.model, self.processor = model.eval(), processor()
        self.forward = Forward(model)

    @torch.no_grad()
    def packed(self, picture: Picture, questions: list[Question]) -> list[bool]:
        """Whether each answer is right, by one forward with all questions behind the image."""
        image = Image.fromarray(picture.pixels)
        inputs = self.processor.image_processor(image, return_tensors="pt")
        features = self.model.model.get_image_features(**inputs).pooler_output[0]
        start = len(PREFIX) + len(features)
        row, at = empty_row(start), 0
        for number, question in enumerate(questions):
            write(row, at, number, question, picture, start)
            at += len(question.words) + 1 + len(question.answer)
        text = stack([row])
        everything = torch.arange(len(features))[None]
        h, positions, mask = text_inputs(self.forward, features[None], text, everything)
        final = self.forward.read(h, positions, start, mask)[-1][0, start:]
        wrong = self.model.lm_head(final).argmax(-1) != text["targets"][0]
        wrong &= text["targets"][0] >= 0
        return [not wrong[text["segments"][0] == n].any() for n in range(len(questions))]

    @torch.no_grad()
    def generated(self, picture: Picture, question: Question) -> bool:
        """Whether the answer is right, by the genuine `generate`."""
        image, text = Image.fromarray(picture.pixels), prompt(" ".join(question.words))
        inputs = self.processor(images=image, text=text, return_tensors="pt")
        output = self.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :]
        decoded = self.processor.tokenizer.decode(answer, skip_special_tokens=True)
        return decoded.split() == list(question.answer)


def evaluate(
    model: LlavaNextForConditionalGeneration,
    pictures: int,
    others: int,
    generate: int,
    kind: str = "plain",
) -> tuple[list[Outcome], int, int]:
    """Outcomes, and how many of the questions sent through generate agreed out of how many."""
    judge, outcomes, agreed, sent = Judge(model), [], 0, 0
    plan = [((128, 128), pictures), *((size, others) for size in OTHER_SIZES)]
    for size, count in plan:
        for index in range(count):
            picture, questions = evaluation_picture(size, index, kind)
            verdicts = judge.packed(picture, questions)
            for question, right in zip(questions, verdicts, strict=True):
                outcomes.append(Outcome("x".join(map(str, size)), question.type, right))
                # spread over the sizes rather than spent on the first one
                if sent < generate and index * len(plan) < generate:
                    sent += 1
                    agreed += judge.generated(picture, question) == right
    return outcomes, agreed, sent


def shares(outcomes: list[Outcome], key: str) -> dict[str, dict[str, float]]:
    """Accuracy in percent and number of questions by an attribute of outcomes."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        groups[getattr(outcome, key)].append(outcome.right)
    return {
        name: {"accuracy": round(100 * float(np.mean(right)), 1), "questions": len(right)}
        for name, right in groups.items()
    }


def overall(outcomes: list[Outcome]) -> dict[str, float]:
    """Accuracy in percent and number of questions, over all of them."""
    right = [outcome.right for outcome in outcomes]
    return {"accuracy": round(100 * float(np.mean(right)), 1), "questions": len(right)}


def summary(outcomes: list[Outcome]) -> dict[str, dict]:
    """By type at 128 x 128, by size, and overall over the one-word types and all."""
    square = [o for o in outcomes if o.size == "128x128"]
    one_word = [o for o in square if o.type in ONE_WORD_TYPES]
    by_type = shares(square, "type")
    return {
        "128x128, one-word types": shares(one_word, "size").get("128x128", {}),
        "128x128, all types": shares(square, "size").get("128x128", {}),
        "all questions": overall(outcomes),
        "by_type": {kind: by_type[kind] for kind in ALL_TYPES if kind in by_type},
        "by_size": shares(outcomes, "size"),
        "by_type_other_sizes": shares([o for o in outcomes if o.size != "128x128"], "type"),
    }


def load(folder: Path) -> nn.Module:
    return LlavaNextForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of an exported model")
    parser.add_argument("--kind", choices=KINDS, default="plain", help="of pictures")
    parser.add_argument("--pictures", type=int, default=150, help="of 128 x 128")
    parser.add_argument("--others", type=int, default=30, help="of each other size")
    parser.add_argument("--generate", type=int, default=0, help="questions to check by generate")
    parser.add_argument("--at-least", type=float, default=0, help="percent; exit 1 below it")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts = args.pictures, args.others, args.generate
    outcomes, agreed, sent = evaluate(load(args.model), *counts, args.kind)
    found: dict = summary(outcomes)
    if sent:
        found["generate"] = {"sent": sent, "agreed": agreed}
    for name, part in found.items():
        print(name)
        for key, value in part.items():
            print(f"  {key:12} {value}")
    if args.json:
        print(json.dumps(found))
    if found["all questions"]["accuracy"] < args.at_least:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
