"""Trains projector and low-rank updates; the same command goes on where it was left.

    ENVIRONMENT/bin/python -m benchmarks.real_parts.train --out FOLDER

In FOLDER: `parts/` (the assembled model), `state.safetensors` (what has been trained, with its
moments), `progress.json` (every look at held-out objects), at the end `model/`, updates merged.
The stop rule: the lower end of the 95% interval of accuracy over the blind baseline (the same
questions, noise for pictures) is above --clear points, or --hours of CPU time are used up.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration

from benchmarks.real_parts import adapters
from benchmarks.real_parts.assemble import save
from benchmarks.real_parts.composites import (
    SEEDS,
    TYPES,
    Composite,
    Question,
    lessons,
    samples,
    sources_of,
)
from benchmarks.real_parts.cutouts import Sources
from prunetune.files import appearing, write_atomically
from prunetune.models.processors import load_processor

HALF = 1.96
Sample = tuple[Composite, Question]
Lesson = tuple[Composite, list[Question]]


class Trainee:
    """The model with what moves, and its progress."""

    def __init__(self, folder: Path, rate: float, half: bool = False) -> None:
        self.folder, self.half = folder, half
        self.model: Any = InternVLForConditionalGeneration.from_pretrained(
            folder / "parts", dtype=torch.float32
        ).eval()
        self.processor: Any = load_processor(folder / "parts", local_files_only=True)
        self.size: int = self.processor.image_processor.size["height"]
        adapters.attach(self.model.model.language_model)
        self.moves = adapters.trained(self.model)
        self.adamw = torch.optim.AdamW(self.moves.values(), rate, weight_decay=0.0)
        self.rate = rate
        self.progress: dict[str, Any] = {"step": 0, "cpu_seconds": 0.0, "looks": []}

    def batch(self, chosen: list[Lesson], blind: bool = False) -> dict[str, Tensor]:
        """Inputs with labels: the answers and what ends them, -100 elsewhere."""
        pictures = [noise(i, self.size) if blind else p.image for i, (p, _) in enumerate(chosen)]
        turns = [self.turns(questions) for _, questions in chosen]
        texts = ["".join(prompt + answer for prompt, answer in said) for said in turns]
        inputs = dict(
            self.processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        )
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, said in enumerate(turns):
            # From the end, where no row is padded; a picture is many tokens, but only in turn one.
            end = labels.shape[1]
            for prompt, answer in reversed(said):
                length = self.tokens(answer)
                labels[row, end - length : end] = inputs["input_ids"][row, end - length : end]
                end -= length + self.tokens(prompt)
        return {**inputs, "labels": labels}

    def tokens(self, text: str) -> int:
        """How many tokens a text is that begins and ends at a special one."""
        return len(self.processor.tokenizer(text, add_special_tokens=False).input_ids)

    def turns(self, questions: list[Question]) -> list[tuple[str, str]]:
        """What the chat template makes of a picture and questions about it, one after another."""
        chat: list[dict[str, Any]] = []
        said, before = [], ""
        for number, question in enumerate(questions):
            picture = [{"type": "image"}] if number == 0 else []
            content = [*picture, {"type": "text", "text": question.text}]
            chat.append({"role": "user", "content": content})
            text: str = self.processor.apply_chat_template(chat, add_generation_prompt=True)
            answer = f"{question.answer}<|im_end|>"
            said.append((text.removeprefix(before), answer))
            before = text + answer
            chat.append(
                {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}
            )
        return said

    def step(self, chosen: list[Lesson], warm: int) -> float:
        """One update; returns the loss before it, of a token."""
        said, targets = self.said(self.batch(chosen))
        loss = F.cross_entropy(said.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.moves.values(), 1.0)
        for group in self.adamw.param_groups:
            group["lr"] = self.rate * min(1.0, (self.progress["step"] + 1) / warm)
        self.adamw.step()
        self.adamw.zero_grad()
        self.progress["step"] += 1
        return float(loss.detach())

    def said(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (n, vocabulary) and targets (n,) of the labelled tokens only, row by row."""
        targets = inputs.pop("labels")[:, 1:]
        on = targets >= 0
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            states = self.model.model(**inputs).last_hidden_state[:, :-1]
            return self.model.lm_head(states[on]), targets[on]

    @torch.no_grad()
    def right(self, asked: list[Sample], blind: bool) -> list[bool]:
        """Whether each answer is right under teacher forcing: the same as by greedy generate."""
        found = []
        for start in range(0, len(asked), 4):
            some = [(picture, [question]) for picture, question in asked[start : start + 4]]
            inputs = self.batch(some, blind)
            lengths = (inputs["labels"][:, 1:] >= 0).sum(1).tolist()
            said, targets = self.said(inputs)
            correct = (said.argmax(-1) == targets).split(lengths)
            found += [bool(answer.all()) for answer in correct]
        return found

    def store(self) -> None:
        """Writes the state whole or not at all."""
        tensors = {}
        for name, weight in self.moves.items():
            tensors[name] = weight.detach()
            for key in ("exp_avg", "exp_avg_sq"):
                if key in self.adamw.state[weight]:
                    tensors[f"{key}/{name}"] = self.adamw.state[weight][key]
        told = {"progress": json.dumps(self.progress)}
        with appearing(self.folder / "state.safetensors") as beside:
            save_file(tensors, beside, metadata=told)
        text = json.dumps(self.progress, indent=1)
        write_atomically(self.folder / "progress.json", text.encode())

    def resume(self) -> bool:
        """Takes up the stored state, where there is one."""
        file = self.folder / "state.safetensors"
        if not file.exists():
            return False
        with safe_open(file, "pt") as stored, torch.no_grad():
            self.progress = json.loads(stored.metadata()["progress"])
            names = set(stored.keys())
            for name, weight in self.moves.items():
                weight.copy_(stored.get_tensor(name))
                if f"exp_avg/{name}" in names:
                    self.adamw.state[weight] = {
                        "step": torch.tensor(float(self.progress["step"])),
                        "exp_avg": stored.get_tensor(f"exp_avg/{name}"),
                        "exp_avg_sq": stored.get_tensor(f"exp_avg_sq/{name}"),
                    }
        return True

    def finish(self) -> None:
        """Writes the model with its updates merged."""
        adapters.merge(self.model.model.language_model)
        save(self.model, self.processor.tokenizer, self.folder / "model", self.size)


def noise(seed: int, size: int) -> Image.Image:
    """What the blind baseline is shown."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def look(trainee: Trainee, asked: list[Sample]) -> dict[str, Any]:
    """Accuracy on held-out objects, sighted and blind, and the interval of the difference."""
    sighted, blind = (trainee.right(asked, b) for b in (False, True))
    apart = [float(a) - float(b) for a, b in zip(sighted, blind, strict=True)]
    kinds = {
        kind: [ok for ok, (_, q) in zip(sighted, asked, strict=True) if q.type == kind]
        for kind in TYPES
    }
    half = HALF * float(np.std(apart)) / math.sqrt(len(apart))
    return {
        "step": trainee.progress["step"],
        "cpu_seconds": round(trainee.progress["cpu_seconds"]),
        "questions": len(asked),
        "accuracy": 100 * float(np.mean(sighted)),
        "blind": 100 * float(np.mean(blind)),
        "ahead": 100 * float(np.mean(apart)),
        "half": 100 * half,
        "kinds": {kind: 100 * float(np.mean(ok)) for kind, ok in kinds.items() if ok},
    }


def stopped(progress: dict[str, Any], clear: float, hours: float) -> str | None:
    """Why training ends, or None."""
    looks = progress["looks"]
    if looks and looks[-1]["ahead"] - looks[-1]["half"] > clear:
        return "clearly above the blind baseline"
    return "out of CPU time" if progress["cpu_seconds"] >= 3600 * hours else None


def train(trainee: Trainee, sides: dict[str, Sources], options: argparse.Namespace) -> str:
    """Steps and looks until the stop rule says why to end."""
    seed = [SEEDS["progress"]]
    asked = samples(seed, sides["held_out"], trainee.size, options.questions)
    began = time.process_time() - trainee.progress["cpu_seconds"]
    looked = saved = time.process_time() - began
    while True:
        progress = trainee.progress
        if (why := stopped(progress, options.clear, options.hours)) is not None:
            return why
        if options.steps is not None and progress["step"] >= options.steps:
            progress["looks"].append(look(trainee, asked))
            return f"{options.steps} steps were asked for"
        chosen = lessons([SEEDS["train"], progress["step"]], sides["train"], trainee.size, 4)
        loss = trainee.step(chosen, options.warm)
        now = progress["cpu_seconds"] = time.process_time() - began
        if progress["step"] % 20 == 0:
            print(f"{now:.0f} s step {progress['step']} loss {loss:.3f}", flush=True)
        if now - looked > 60 * options.look_minutes:
            progress["looks"].append(look(trainee, asked))
            print(json.dumps(progress["looks"][-1]), flush=True)
            looked = time.process_time() - began
        if now - saved > 120:
            trainee.store()
            saved = now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--files", type=Path, help="the unpacked packages; none: stand-ins")
    parser.add_argument("--hours", type=float, default=6, help="of CPU time, all runs together")
    parser.add_argument(
        "--clear", type=float, default=15, help="points above blind that are enough"
    )
    parser.add_argument("--look-minutes", type=float, default=20, help="of CPU time between looks")
    parser.add_argument("--questions", type=int, default=200, help="of a look")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--half", action="store_true", help="multiply in bf16")
    parser.add_argument("--warm", type=int, default=50)
    parser.add_argument("--steps", type=int, help="end after so many, whatever is reached")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainee = Trainee(options.out, options.rate, options.half)
    print("resumed" if trainee.resume() else "begun", flush=True)
    sides = sources_of(options.files)
    why = train(trainee, sides, options)
    trainee.progress["ended"] = why
    trainee.store()
    trainee.finish()
    print(json.dumps({"ended": why, **trainee.progress["looks"][-1]}))


if __name__ == "__main__":
    main()
