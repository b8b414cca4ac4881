"""What a family tells the runtime: where things are in a model, and where each token comes from."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunetune.errors import UnsupportedModelError
from prunetune.families.base_calls import Survivors, TappedAttention, Tokens, VisionCall
from prunetune.families.base_configs import CLIP_PIXELS, SIGLIP_PIXELS, multimodal_rotary
from prunetune.families.base_towers import Towered
from prunetune.families.bases.between import Between
from prunetune.families.bases.layers import Layered
from prunetune.numerics import fitting
from prunetune.tokens import ImageGeometry, Mosaic

__all__ = ["Family", "Survivors", "TappedAttention", "Tokens", "VisionCall", "refuse"]

TOWER_NEEDS = frozenset({"vision_attention", "vision_map", "patch_entropy"})
"""Inputs of scorers that are made of what a tower sees and attends to."""


class Family(Layered, Between, Towered):
    """Base of all families: a view on one loaded model; it holds no tensors and changes nothing.

    A subclass sets ``model_type`` and implements ``geometries``, ``views`` and, where the tower's
    attention can be read, ``vision_attention_module``. The defaults fit LLaVA-like models:
    ``model.model`` with ``language_model`` and ``vision_tower``.

    Args:
        model: The Hugging Face model.

    Raises:
        UnsupportedModelError: The model has a feature that pruning cannot work with.
    """

    model_type: ClassVar[str] = ""
    encoder_method: ClassVar[str] = "get_image_features"
    video_encoder_method: ClassVar[str | None] = None
    has_separators: ClassVar[bool] = False
    first_position: ClassVar[int] = 0
    answer_kind: ClassVar[int] = 0
    """The ``token_type_ids`` of an expected answer, behind the prompt."""
    joins_views: ClassVar[bool] = False
    """Whether the encoder takes a picture's tiles for images; ``mosaics`` then joins them."""
    makes_cache: ClassVar[bool] = True
    """Whether the model's forward makes a cache where ``use_cache`` asks for one."""
    base_has_head: ClassVar[bool] = False
    """Whether ``base`` returns logits: final states then come out of ``text_model`` only."""
    complex_rotary: ClassVar[bool] = False
    """Whether decoder layers take rotary cos and sin as one complex number."""
    broadcasts: ClassVar[bool] = True
    """Whether a decoder layer adds what its MLP makes of one token to all of them."""
    can_pack: ClassVar[bool] = True
    """Whether positions can be renumbered: not where they are rows and columns."""
    tokens_of_views: ClassVar[bool] = True
    """Whether a token's patches are of one view: else no view's map is one of tokens."""
    one_view: ClassVar[bool] = False
    """Whether a picture is always seen as one view: nothing can then be ranked view by view."""
    resizing: ClassVar[str] = ""
    """How the number of tokens follows a picture's size, see ``prunetune.pixels.layouts``: by its
    pixels (``native``, ``volume``, ``enlarged``), by an edge (``edge``), by tiles (``tiles``,
    ``canvas``, ``covering``, ``longest_edge``), or not at all."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config: Any = model.config
        self.check()

    def check(self) -> None:
        """Raise ``UnsupportedModelError``, with the reason, for what cannot work."""

    @property
    def base(self) -> nn.Module:
        """The module whose forward takes ``input_ids`` and pixels."""
        base: nn.Module = getattr(self.model, "model", self.model)
        return base

    @property
    def text_model(self) -> Any:
        """The decoder stack: has ``layers``, ``norm``, ``rotary_emb`` and ``config``."""
        return self.base.language_model

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        layers: nn.ModuleList = self.text_model.layers
        return layers

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that every image token takes in ``input_ids``."""
        return int(self.config.image_token_id)

    @property
    def placeholders(self) -> dict[str, int]:
        """Ids of the placeholders in ``input_ids``, by modality."""
        ids = {"image": self.image_token_id}
        if self.video_encoder_method is not None:
            ids["video"] = int(self.config.video_token_id)
        return ids

    @property
    def encoders(self) -> dict[str, str]:
        """Names of the base's encoder methods, by modality."""
        names = {"image": self.encoder_method}
        if self.video_encoder_method is not None:
            names["video"] = self.video_encoder_method
        return names

    def features(self, output: Any) -> Any:
        """Return what stands in the sequence, image by image, from what an encoder returned.

        Args:
            output: A tuple, or an output with ``pooler_output``.
        """
        return output[1] if isinstance(output, tuple) else output.pooler_output

    def lengths(self, arguments: Mapping[str, Any], features: Any, modality: str) -> list[int]:
        """Return how many tokens each image or video takes, from what its encoder returned."""
        return [part.shape[:-1].numel() for part in features]

    @property
    def multimodal_positions(self) -> bool:
        """Whether positions are triples of time, row and column, which only the model can find."""
        return not self.can_pack or multimodal_rotary(self.text_model.config)

    def final_states(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Run the base model.

        Args:
            inputs: Of the base model's forward, by name.

        Returns:
            The states behind its final norm, ``[B, S, d]``, and its output.
        """
        output: Any = self.base(**inputs)
        states: Tensor = output.last_hidden_state
        return states, output

    def logits(self, states: Tensor) -> Tensor:
        """Return what the model makes of states after the final norm, ``[..., vocabulary]``."""
        head: Any = self.model
        logits: Tensor = head.get_output_embeddings()(states)
        return logits

    def blocks(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Return which tokens of a forward with images attend in both directions.

        Args:
            arguments: Of the base model's forward, by name.

        Returns:
            ``[B, S]`` int64: tokens of one number attend to one another, -1 attends causally. None:
            all of them attend causally.
        """
        return None

    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """Return where each token of each image comes from, in sequence order, on the CPU.

        A video is one item whose frames are its tiles.
        """
        raise NotImplementedError

    def views(self, call: VisionCall) -> list[int]:
        """Return how many views (thumbnail and tiles; frames) the tower saw of each image."""
        raise NotImplementedError

    def pixels(self, call: VisionCall) -> list[Tensor]:
        """Return each image's views as the tower got them, ``[views, 3, height, width]``."""
        raise NotImplementedError

    def mosaics(self, slots: Tensor, labels: Tensor, sketches: list[Tensor]) -> list[Mosaic]:
        """Return which consecutive views of one prompt are one picture; with ``joins_views`` only.

        Args:
            slots: ``[n]`` int64 ascending, the slots of the prompt's image tokens.
            labels: ``[S]`` int64, equal where the prompt's tokens are equal.
            sketches: Each view in grey and small, ``[side, side]`` float32.
        """
        raise NotImplementedError

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the (mean, standard deviation) that the tower's pixels are normalised with."""
        return CLIP_PIXELS if self.vision_has_cls() else SIGLIP_PIXELS

    def vision_attention_module(self) -> nn.Module | None:
        """Return the attention module of the layer whose output are the features, or None."""
        return None

    def vision_attention_modules(self) -> list[nn.Module]:
        """Return those of all towers, where images and videos have one each."""
        module = self.vision_attention_module()
        return [] if module is None else [module]

    def tower_tells(self) -> frozenset[str]:
        """Return which inputs of scorers can be made of the tower: of ``TOWER_NEEDS``."""
        if not self.vision_attention_modules():
            return TOWER_NEEDS - {"vision_attention", "vision_map"}
        return TOWER_NEEDS if self.tokens_of_views else frozenset({"vision_attention"})

    def vision_has_cls(self) -> bool:
        """Tell whether the tower's first token is a CLS token."""
        return False

    def pooling(self, call: VisionCall) -> Tensor | None:
        """Return how the tokens of a view are averaged from the tower's patches.

        For families whose pooling is not the merging of ``patches_per_token`` neighbours.

        Returns:
            ``[tokens, patches]`` float32, rows sum to 1; None: every patch is a token.
        """
        return None

    def taken(self, call: VisionCall) -> list[Tensor] | None:
        """Return which patches each token is made of, where they are of several views.

        Returns:
            Of each image ``[tokens, patches of a token]`` int64 into its views' patches, one view
            behind another; -1: none. None: tokens are of one view each.
        """
        return None

    @property
    def patches_per_token(self) -> int:
        """Patches of the tower that are merged into one visual token."""
        return 1

    def vision_heads(
        self, tapped: TappedAttention, call: VisionCall, *, first_only: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each image's query and key as the softmax of its attention sees them.

        The default fits modules with ``q_proj`` and ``k_proj`` that got ``[views, patches, d]``.

        Args:
            tapped: What the module was given.
            call: The encoder call.
            first_only: Whether the first patch's query is enough (a CLS token's).

        Yields:
            Query, scaled, and key: ``[views, heads, patches, head_dim]`` float32. Patches merged
            into one visual token are neighbours, tokens in raster order; a CLS token is first.
        """
        module = tapped.module
        scale = float(getattr(module, "scale", None) or int(module.head_dim) ** -0.5)
        for states in torch.split(fitting(tapped.states, module.q_proj), self.views(call)):
            asking = states[:, :1] if first_only else states
            # Where InternVL's tower normalises them, it does so over all heads.
            norms = (getattr(module, "q_norm", None), getattr(module, "k_norm", None))
            query, key = (
                (part if norm is None else norm(part))
                .unflatten(2, (-1, int(module.head_dim)))
                .transpose(1, 2)
                .float()
                for part, norm in zip((module.q_proj(asking), module.k_proj(states)), norms)
            )
            yield query * scale, key

    def prefix_problem(self) -> str | None:
        """Return why a search cannot start from stored states of this model; None where it can.

        It then runs the whole model in every trial. So a family says where a layer is given more
        than its states, rotary rows, ``blocks`` and what is ``injected``.
        """
        return None


def refuse(model: nn.Module, reason: str) -> UnsupportedModelError:
    """Return the error for a model that cannot be pruned, with the reason."""
    return UnsupportedModelError(f"{type(model).__name__} cannot be pruned: {reason}")
