"""What a scorer is, what it may ask for, and how scores are made comparable."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.registry import Tunable
from prunetune.tokens import ImageGeometry

Need = Literal[
    "vision_attention",
    "vision_map",
    "patch_entropy",
    "layer_states",
    "last_query",
    "image_seed",
    "states",
    "question",
    "keys",
]
"""What a scorer can ask the runtime to tap."""

LAYER_NEEDS: frozenset[str] = frozenset({"layer_states", "last_query", "keys"})
"""Needs that no stage at layer 0 can meet: nothing of the language model has run there."""

PROMPT_NEEDS: frozenset[str] = frozenset({"states", "question"})
"""Needs that every forward meets by itself, at any layer and without the vision tower."""


@dataclass(frozen=True)
class ScoreContext:
    """What a scorer may look at: one image's prunable tokens at one stage. Must not be modified.

    ``visual`` below is the number of the image's patches alive before the stage, in sequence
    order. Inputs that the scorer did not name in ``needs`` may be None.

    Attributes:
        geometry: Of the ``visual`` patches (no separators among them).
        layer: The stage's layer; 0 is before the language model.
        vision_attention: ``[visual]`` float32; attention of the vision tower's CLS token (mean
            attention received, where the tower has none) to each patch, head mean, softmax over
            the token's own crop, same layer as the features.
        source_states: ``[visual, d]``; residual stream entering decoder layer ``layer - 1``.
        target_states: ``[visual, d]``; output of that layer's second norm (its MLP's input).
        last_query: ``[visual]`` float32; attention from the last text token at decoder layer
            ``layer - 1``, head mean, softmax over all tokens.
        image_seed: Number that depends on the image's pixels only.
        vision_map: ``[views, patches, patches]`` float32; the attention map that
            ``vision_attention`` is a row of, query by key, head mean, of the image's whole views
            (patches alive or not; CLS dropped). A token's place in it is ``geometry.inside``.
        patch_entropy: ``[views, patches]`` float32; entropy in bits of the grey values of each
            patch of the image's whole views, on pixels as they were before normalising.
        states: ``[visual, d]``; residual stream entering decoder layer ``layer``, at layer 0 the
            projected features.
        text: ``[t, d]``; input embeddings of the question's tokens (none of the chat template's).
        keys: ``[visual, heads, d]``; keys of decoder layer ``layer - 1``, before they are rotated.
    """

    geometry: ImageGeometry
    layer: int
    vision_attention: Tensor | None = None
    source_states: Tensor | None = None
    target_states: Tensor | None = None
    last_query: Tensor | None = None
    image_seed: int = 0
    vision_map: Tensor | None = None
    patch_entropy: Tensor | None = None
    states: Tensor | None = None
    text: Tensor | None = None
    keys: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.geometry.tile.device

    def given(self, name: str) -> Tensor:
        """Return the input called ``name``, for a scorer that named the need behind it.

        Raises:
            ValueError: The caller did not provide it.
        """
        value = getattr(self, name)
        if not isinstance(value, Tensor):
            raise ValueError(f"ScoreContext.{name}: received {value!r}, this scorer needs a tensor")
        return value

    def __len__(self) -> int:
        return len(self.geometry)


class Scorer(BaseModel):
    """Base of all scorers: a frozen pydantic model whose fields are its hyperparameters.

    A subclass sets ``name``, ``needs`` and ``standardise`` and implements ``score``. The base
    class does the rest: ``importance`` ranks within the crop where asked and standardises, so that
    weights of different scorers can be compared.

    Contract: ``score`` is called once per image and stage. It must not modify the context, must be
    deterministic given the image, computes in fp32 whatever the dtype of the states, and uses at
    most 256 MiB of scratch memory for 8,192 tokens (chunk what is N x N).

    Attributes:
        weight: Signed score weight in the stage's sum of standardised scores, in [-1, 1].
        per_crop: Rank inside each crop (thumbnail or tile) instead of over the whole image, so
            that every crop keeps the same share (FasterVLM and TopV on any-resolution images).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset()
    searched: ClassVar[Mapping[str, Any]] = {}
    """Fields that a search sets beside the tunable ones: where a default is what older files mean,
    what newer ones shall."""
    standardise: ClassVar[Literal["linear", "log"]] = "linear"
    summary: ClassVar[str] = ""

    name: str
    weight: float = Field(default=1.0, ge=-1.0, le=1.0)
    per_crop: bool = False

    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the importance of each visual token, ``[visual]`` float32; higher is kept."""
        raise NotImplementedError

    @classmethod
    def is_fixed(cls) -> bool:
        """Tell whether no hyperparameter is tunable: one image then has one score for good."""
        fields = cls.model_fields.values()
        return not any(isinstance(m, Tunable) for field in fields for m in field.metadata)

    @property
    def since(self) -> int:
        """First version of the config format whose files can say what this scorer says."""
        return 1

    def usable_at(self, layer: int) -> bool:
        """Tell whether a stage at ``layer`` can give this scorer its inputs."""
        return layer > 0 or not (self.needs & LAYER_NEEDS)

    @exactly()
    def importance(self, ctx: ScoreContext) -> Tensor:
        """Return the standardised score, ``[visual]`` float32, mean 0 and variance 1 (or all 0)."""
        score = self.score(ctx).float()
        if self.per_crop:
            return standardised(crop_quantile(score, ctx.geometry.tile))
        if self.standardise == "log":
            score = score.clamp_min(torch.finfo(torch.float32).tiny).log()
            # A rounding error of the score is an absolute error of its logarithm.
            return standardised(score, least=1e-5)
        return standardised(score)


def standardised(score: Tensor, least: float = 1e-12) -> Tensor:
    """Return ``score`` with zero mean and unit variance; zeros where it is constant.

    Args:
        score: ``[n]`` float32.
        least: Standard deviation up to which it counts as constant.
    """
    centred = score - score.mean()
    spread = centred.pow(2).mean().sqrt()
    if not bool(spread > (1e-6 * score.abs().max()).clamp_min(least)):
        return torch.zeros_like(score)
    return centred / spread


def crop_quantile(score: Tensor, tile: Tensor) -> Tensor:
    """Return each token's quantile among the tokens of its crop, ``[visual]`` in (0, 1).

    Keeping the highest quantiles keeps the same share of every crop.
    """
    out = torch.zeros_like(score)
    for t in torch.unique(tile).tolist():
        member = (tile == t).nonzero().flatten()
        order = torch.argsort(score[member], descending=True, stable=True)
        rank = torch.zeros_like(order)
        rank[order] = torch.arange(len(member), device=score.device)
        out[member] = 1.0 - (rank.float() + 0.5) / len(member)
    return out
