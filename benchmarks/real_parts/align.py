"""Brings projected tokens near the words for what they show, before the language model runs.

By cosine a token of a picture shall be nearest to the word of the object that covers it (or
`background`), and to the words of its place. It takes the tower and the projector alone, a tenth of
a training step's time; what training finds then are tokens that the language model can read.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.real_parts.composites import Composite

NOTHING = "background"
PLACES = (("top", "bottom"), ("left", "right"))
SHARPNESS = 10.0
"""Cosines are logits times this."""


def word_vectors(model: Any, tokenizer: Any, words: list[str]) -> Tensor:
    """(words, width), length 1: the mean embedding of each word's tokens, as inside a sentence."""
    table = model.get_input_embeddings().weight.detach()
    found = [table[tokenizer(f" {w}", add_special_tokens=False).input_ids].mean(0) for w in words]
    return F.normalize(torch.stack(found), dim=-1)


def shown(picture: Composite, classes: list[str], side: int) -> Tensor:
    """(side * side,) which class covers most of a token's place; len(classes) for none."""
    most = np.full((side, side), 0.35)
    found = np.full((side, side), len(classes))
    for corner, name in picture.corners.items():
        covered = np.asarray(picture.covers[corner].resize((side, side))) / 255
        found = np.where(covered > most, classes.index(name), found)
        most = np.maximum(covered, most)
    return torch.from_numpy(found.reshape(-1))


class Aligner:
    """The loss of a batch of pictures.

    Args:
        model: An `InternVLForConditionalGeneration`.
        processor: Its processor.
        classes: Names of objects, in the order of ``shown``.
    """

    def __init__(self, model: Any, processor: Any, classes: list[str]) -> None:
        self._model, self._processor, self._classes = model, processor, classes
        table = model.get_input_embeddings().weight
        self._length = float(table.detach().norm(dim=-1).mean())
        self._names = word_vectors(model, processor.tokenizer, [*classes, NOTHING])
        self._places = [word_vectors(model, processor.tokenizer, list(pair)) for pair in PLACES]

    def loss(self, pictures: list[Composite]) -> Tensor:
        """How far the tokens are from their words, and from an embedding's usual length."""
        images = [picture.image for picture in pictures]
        pixels = self._processor.image_processor(images=images, return_tensors="pt")
        found = self._model.get_image_features(pixel_values=pixels["pixel_values"])
        tokens = found.pooler_output.flatten(0, 1)
        side = round((len(tokens) / len(pictures)) ** 0.5)
        what = torch.cat([shown(picture, self._classes, side) for picture in pictures])
        way = SHARPNESS * F.normalize(tokens, dim=-1)
        loss = F.cross_entropy(way @ self._names.T, what)
        rows, columns = np.indices((side, side)).reshape(2, -1) >= side / 2
        for lies, words in zip((rows, columns), self._places, strict=True):
            where = torch.from_numpy(lies).long().repeat(len(pictures))
            loss = loss + 0.5 * F.cross_entropy(way @ words.T, where)
        return loss + (tokens.norm(dim=-1) / self._length - 1).square().mean()
