"""A mid-size random LLaVA-NeXT with a processor and calibration samples: `mid` in the benchmarks.

24 decoder layers, d=512, 77 M parameters; a square picture takes 1,479 image tokens (five views of
17 x 17 patches and 34 newlines), a question 12 to 100 words. Nothing is trained: times are real,
gaps mean nothing beyond "lower is nearer to the unpruned model".
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from common import mid_llava_next
from PIL import Image
from torch import nn

from prunetune.calibration import CalibrationSet, Sample
from prunetune.models import LoadedModel, load_model
from prunetune.models.fingerprint import fingerprint

SIDE, PATCH = 17, 4


def load_mid(layers: int = 24, width: int = 512, side: int = SIDE) -> LoadedModel:
    """Return the random model; its words are those of the embedded model's tokenizer."""
    from transformers import LlavaNextProcessor

    words = load_model("tiny").processor
    model = mid_llava_next(layers, width, side)
    model.config.image_token_id = words.tokenizer.convert_tokens_to_ids(words.image_token)
    _strengthen(model)
    view = side * PATCH
    views = type(words.image_processor)(
        size={"shortest_edge": view},
        crop_size={"height": view, "width": view},
        image_grid_pinpoints=[[2 * view, 2 * view]],
    )
    processor = LlavaNextProcessor(
        image_processor=views,
        tokenizer=words.tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=words.image_token,
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    return LoadedModel(model, processor, "mid", None, fingerprint(model.config))


def _strengthen(model: nn.Module) -> None:
    """Let attention choose: at the usual initial scale it is flat, and every config is as good."""
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("q_proj.weight", "k_proj.weight", "multi_modal_projector.linear_2.weight")
        ):
            parameter.data.mul_(4)


def mid_samples(count: int, seed: int = 0, side: int = SIDE) -> CalibrationSet:
    """Return questions about one picture each: fields of colour and noise."""
    draw = random.Random(seed)
    words = [w for w, _ in sorted(load_model("tiny").processor.tokenizer.get_vocab().items())]
    words = [w for w in words if w.isalpha()]
    samples = []
    for k in range(count):
        question = " ".join(draw.choices(words, k=draw.randint(12, 100)))
        painted = Painted(draw.randrange(2**31), 2 * side * PATCH)
        samples.append(Sample(painted, question, image_id=str(k), id=str(k)))
    return CalibrationSet(tuple(samples))


class Painted(Sequence[Image.Image]):
    """One picture that is painted whenever it is asked for, as a folder's is decoded."""

    def __init__(self, seed: int, size: int) -> None:
        self._seed, self._size = seed, size

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if index:
            raise IndexError(index)
        noise = torch.Generator().manual_seed(self._seed)
        fields = torch.rand(1, 3, 6, 6, generator=noise)
        size = (self._size, self._size)
        picture = nn.functional.interpolate(fields, size, mode="bilinear")[0]
        picture = picture + 0.1 * torch.randn(picture.shape, generator=noise)
        pixels = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous()
        return Image.fromarray(pixels.numpy())
