"""What the tests must know of a family; the defaults fit LLaVA."""

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

torch.set_num_threads(1)
# Text tokens are drawn from 2..98; a family's own markers may take 101..119.
IMAGE, VIDEO, VOCAB, LAYERS = 99, 100, 120, 6


def needs(version: str, reason: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where transformers is older, and says what that one does."""
    here = Version(transformers.__version__)
    why = f"transformers {here}: {reason}; {version} does not"
    return pytest.mark.skipif(here < Version(version), reason=why)


@dataclass(frozen=True)
class Piece:
    """A part of a prompt.

    Attributes:
        ids: Its tokens, markers included.
        count: How many of them are visual tokens; 0 for text.
        inputs: What it adds to the model's inputs; ``TinyFamily.collate`` joins them.
    """

    ids: list[int]
    count: int = 0
    inputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Model inputs, and how many tokens each image or video of each row has.

    ``inputs`` holds ``[B, S]`` tensors and what ``TinyFamily.visual_inputs`` names.
    """

    inputs: dict[str, Tensor]
    images: list[list[int]]
    pieces: list[list[Piece]] = field(default_factory=list)

    @property
    def valid(self) -> Tensor:
        return self.inputs["attention_mask"].bool()

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


class TinyFamily:
    """One family: how to build a tiny model, its inputs, and what the reference must know of it.

    Attributes:
        model_type: As in the config.
        rows: A ragged batch of three with images (and videos) of several sizes, several in a row. A
            number is so many text tokens, a pair an image of that height and width, a triple a
            video of so many frames of that height and width.
        image: An image, for tests that need one.
        other: One with another number of tokens, where sizes differ; else the same.
        videos: Videos of several lengths, where the family takes them.
        visual_inputs: Names of the model inputs that are not ``[B, S]``.
        refused_scorers: Scorers that this family's tower has no input for.
        hybrid: Whether some layers carry a state, so that tokens leave before the first one only,
            and the reference removes them instead of masking them.
        kinds: Of each decoder layer, where it is.
        packed: Whether positions may be renumbered.
        later_images: Whether a later turn may bring images.
        views_apart: Whether the encoder gets a picture's tiles in one row with other pictures'.
        lookup: Whether transformers itself can look candidates up in the prompt; else why not.
        beam: Whether transformers itself can search beams at all; else why not.
        beams: Whether transformers itself keeps several images of a prompt in order under beams;
            else why not.
        cached_beams: Whether transformers' own beams are alike with and without a cache; else why
            not.
        flash: Whether transformers' own tower keeps images apart under FlashAttention; else why
            not.
        makes_cache: Whether transformers' own forward makes a cache where it is given none.
        keeps_logits: Whether transformers' own forward makes the logits that it is asked for only.
        chunks: Whether transformers itself can prefill it in parts; else why not.
        embeds: Whether it takes embeddings and pixels together; else why not.
        static: Whether transformers itself can generate with a static cache; else why not.
        marks: Pytest marks of all its tests, as from ``needs``.
    """

    model_type: str = ""
    rows: tuple[tuple[Any, ...], ...] = ()
    image: tuple[int, int] = (20, 20)
    other: tuple[int, int] = (20, 20)
    videos: tuple[tuple[int, int, int], ...] = ()
    visual_inputs: tuple[str, ...] = ("pixel_values", "image_sizes")
    refused_scorers: frozenset[str] = frozenset()
    hybrid: bool = False
    kinds: tuple[str, ...] = ()
    packed: bool = True
    later_images: bool = True
    views_apart: bool = False
    lookup: bool | str = True
    beam: bool | str = True
    beams: bool | str = True
    cached_beams: bool | str = True
    flash: bool | str = True
    makes_cache: bool = True
    keeps_logits: bool = True
    chunks: bool | str = True
    embeds: bool | str = True
    static: bool | str = True
    marks: tuple[Any, ...] = ()

    # -- models and batches ----------------------------------------------------------------

    def build(self, attention: str, **text: Any) -> Any:
        """Return a random fp32 model with ``LAYERS`` decoder layers; called under a fixed seed.

        ``text`` are settings of the text model's config. Images whose pixels differ must have
        features that differ: small towers need a large ``initializer_range``.
        """
        raise NotImplementedError

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        """Return an image (a pair) or a video (a triple)."""
        raise NotImplementedError

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        """Join the inputs of a batch's images and videos, all rows' in order."""
        names = dict.fromkeys(name for piece in pieces for name in piece.inputs)
        return {n: torch.cat([p.inputs[n] for p in pieces if n in p.inputs]) for n in names}

    def per_token(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        """Return further ``[B, S]`` inputs (token types), from ``[B, S]`` ids."""
        return {}

    def model(self, attention: str = "sdpa", **text: Any) -> Any:
        """Return a fresh copy of the model, the same weights at every call."""
        return copy.deepcopy(_built(self, attention, **text))

    def assemble(self, model: Any, rows: list[list[Piece]]) -> Batch:
        """Return the left-padded batch of rows of pieces."""
        ids = [[token for piece in row for token in piece.ids] for row in rows]
        visual = [[piece for piece in row if piece.count] for row in rows]
        width = max(map(len, ids))
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        inputs = {"input_ids": tokens, "attention_mask": mask} | self.per_token(model, tokens)
        inputs |= self.collate([piece for row in visual for piece in row])
        return Batch(inputs, [[piece.count for piece in row] for row in visual], rows)

    def batch(self, model: Any, rows: Any = None, seed: int = 0) -> Batch:
        """Build a left-padded batch; see ``rows`` for what a row is."""
        random = torch.Generator().manual_seed(1000 + seed)
        made: list[list[Piece]] = []
        images = 0
        for row in rows or self.rows:
            made.append([])
            for item in row:
                if isinstance(item, int):
                    ids = torch.randint(2, IMAGE, (item,), generator=random).tolist()
                    made[-1].append(Piece(ids))
                else:
                    made[-1].append(self.piece(model, item, seed * 100 + images))
                    images += 1
        return self.assemble(model, made)

    def join(self, name: str, one: Tensor, two: Tensor) -> Tensor:
        """Join a visual input of an earlier and a later turn."""
        if one.ndim == 5:
            most = max(one.shape[1], two.shape[1])
            padded = [(0,) * 7 + (most - t.shape[1],) for t in (one, two)]
            one, two = (torch.nn.functional.pad(t, p) for t, p in zip((one, two), padded))
        return torch.cat([one, two])

    def explicit_positions(self, model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return further inputs where the model cannot find the positions of a call by itself.

        That is with embeddings instead of ids, and from the first later turn with images on.

        Args:
            model: The model.
            inputs: Of the whole conversation so far, ids and all images.
        """
        return {}

    # -- what the reference must know --------------------------------------------------------

    def text_model(self, model: Any) -> Any:
        """The module with ``layers`` that takes ``inputs_embeds``."""
        return model.model.language_model

    def second_norm(self, layer: Any) -> Any:
        """The norm before a decoder layer's MLP."""
        return layer.post_attention_layernorm

    def positions(self, model: Any, numbered: Tensor) -> Tensor | None:
        """Return ``position_ids`` of a full-length run; None: leave them to the model.

        Args:
            model: The model.
            numbered: ``[B, S]`` bool, the slots that take a position.
        """
        return (numbered.cumsum(1) - 1).clamp_min(0)

    def near(self, model: Any, layer: int, valid: Tensor) -> Tensor:
        """Return which slots a layer's window or chunk holds together, ``[B, S, S]`` bool.

        Args:
            model: The model.
            layer: 0-based.
            valid: ``[B, S]`` bool; chunks are counted from the first real slot on.
        """
        config = self.text_model(model).config
        sliding = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None) or ["sliding" if sliding else ""] * LAYERS
        slots = torch.arange(valid.shape[1]).expand(valid.shape)
        if "chunked" in kinds[layer]:
            chunk = (slots - valid.int().argmax(1)[:, None]) // config.attention_chunk_size
            return chunk[:, :, None] == chunk[:, None]
        if "sliding" in kinds[layer]:
            return slots[:, :, None] - slots[:, None] < sliding
        return torch.ones(*valid.shape, valid.shape[1], dtype=torch.bool)

    def allowed(
        self,
        model: Any,
        ids: Tensor | None,
        keys: Tensor,
        prompt: int,
        near: Tensor | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Return which slot may attend to which in a full-length run, ``[B, S, S]`` bool.

        Args:
            model: The model.
            ids: ``[B, S]`` tokens of the run; None where the caller passed embeddings.
            keys: ``[B, S]`` bool: real and alive at this layer.
            prompt: The length of the prompt, padding included; what follows was generated.
            near: Which slots the layer's window holds together; None: all.
            layer: 0-based.
        """
        length = keys.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril() & keys[:, None]
        return causal if near is None else causal & near


@cache
def _built(family: TinyFamily, attention: str, **text: Any) -> Any:
    torch.manual_seed(7)
    model = family.build(attention, **text)
    model.set_attn_implementation(attention)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    return model.eval()


def clip_config(side: int, **changes: Any) -> CLIPVisionConfig:
    """Return a small CLIP tower of three layers for views of ``side`` x ``side`` pixels."""
    settings = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": side, "patch_size": 4, "initializer_range": 0.2,
    }  # fmt: skip
    return CLIPVisionConfig(**settings | changes)


def text_settings(**changes: Any) -> dict[str, Any]:
    """Return settings of a small decoder that most text configs understand."""
    settings = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "initializer_range": 0.1, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    return settings | changes


def llama_config(**changes: Any) -> LlamaConfig:
    """Return a small Llama decoder."""
    return LlamaConfig(**text_settings(**changes))


def widen(model: Any, prefix: str, std: float = 0.2) -> None:
    """Draw the matrices under ``prefix`` anew, wide: else all images look alike to the decoder."""
    for name, parameter in model.named_parameters():
        if name.startswith(prefix) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std)
