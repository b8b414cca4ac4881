"""The assembled model with what moves in it, and how far its training is."""

import json
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
from benchmarks.real_parts.composites import Composite, Question
from prunetune.files import appearing, write_atomically
from prunetune.models.processors import load_processor

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
        projector = [w for name, w in self.moves.items() if "multi_modal_projector" in name]
        updates = [w for name, w in self.moves.items() if "multi_modal_projector" not in name]
        groups = [{"params": updates, "full": rate}, {"params": projector, "full": rate / 4}]
        self.adamw = torch.optim.AdamW(groups, rate, weight_decay=0.0)
        self.rate = rate
        self.progress: dict[str, Any] = {
            "aligned": 0,
            "step": 0,
            "cpu_seconds": 0.0,
            "looks": [],
        }

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
            group["lr"] = group["full"] * min(1.0, (self.progress["step"] + 1) / warm)
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
