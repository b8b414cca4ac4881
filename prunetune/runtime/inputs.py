"""Reads the arguments of a base model's forward: where its images are, what is known of them."""

import functools
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.release import cache_of
from prunetune.runtime.choice.plan import Plan
from prunetune.runtime.layers.cache import check_whole
from prunetune.runtime.vision.captures import Captures, Step, given_to, placeholder_mask
from prunetune.runtime.vision.forward import Forward
from prunetune.runtime.vision.tower import VisionCapture
from prunetune.runtime.vision.views import token_labels
from prunetune.scorers.base import LAYER_NEEDS

POSITIONS = "position_ids"

logger = logging.getLogger(__name__)

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Args and kwargs."""


class Inputs:
    """Reads what forwards of one model under one config are given.

    Args:
        plan: The config, resolved for the model.
        captures: Of the model's encoder calls.
    """

    def __init__(self, plan: Plan, captures: Captures) -> None:
        self._plan = plan
        self._family = plan.family
        self._captures = captures
        self._signature = inspect.signature(plan.family.base.forward)
        self._encodes_once = "mm_encoder_outputs" in self._signature.parameters
        self._warned = False

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: int
    ) -> tuple[Forward, Call | None]:
        """Return what a forward was given, and what its model is to be given instead (None: that).

        Args:
            args: Of the base model's forward.
            kwargs: Likewise.
            wanted: How many last logits its caller asked for; 0: unknown, or all.
        """
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        bound = bound | bound.get("kwargs", {})
        cache, ids = cache_of(bound), bound.get("input_ids")
        forward = Forward(
            mask=self._mask_of_layer_0(bound.get("attention_mask")),
            ids=ids,
            embeds=bound.get("inputs_embeds"),
            cache=cache,
            past=0 if cache is None else int(cache.get_seq_length()),
            # Assisted decoding prefills candidates behind the prompt and asks for all their logits:
            # the first of these is the last prompt token's.
            tail=max(0, wanted - 1),
            chosen_positions=bound.get(POSITIONS) is not None,
        )
        check_whole(cache, forward.past)
        if self._find_images(forward, bound, wanted):
            dropped = {"input_ids", "kwargs"}
            return forward, ((), {k: v for k, v in bound.items() if k not in dropped})
        kinds, past = kwargs.get("token_type_ids"), forward.past
        if past and kinds is not None and ids is not None and kinds.shape == ids.shape:
            # Before transformers 5.18 they are cut to the new tokens, and read from the start on.
            whole = torch.nn.functional.pad(kinds, (past, 0))
            return forward, (args, kwargs | {"token_type_ids": whole})
        return forward, None

    def _find_images(self, forward: Forward, bound: dict[str, Any], wanted: int) -> bool:
        """Find out where a forward's images are, and what is known of them.

        Returns:
            Whether the model must not be given the ids: the caller has merged the features into the
            embeddings, and a model takes only one of both.
        """
        encoded, pixels = given_to(self._family, bound)
        given = [m for m in self._family.encoders if m in {**encoded, **pixels}]
        ids, embeds = bound.get("input_ids"), bound.get("inputs_embeds")
        looped = wanted == 1 and forward.cache is None and not self._encodes_once
        self._captures.step = None
        if looped and pixels and ids is not None:
            self._captures.step = Step(pixels, ids.shape[1])
        captures: Mapping[str, VisionCapture | None] = {
            m: self._captures.of(m, features) for m, features in encoded.items()
        }
        merged = not given and ids is not None and embeds is not None
        if merged and bound["input_ids"].shape[1] > 1:
            captures = self._merged(bound)
            given = list(captures)
        for modality, capture in captures.items():
            # Another config may have been applied when they were computed.
            if capture is not None and self._plan.needs - LAYER_NEEDS <= capture.needs:
                forward.captures[modality] = capture
        if given:
            masks = {m: placeholder_mask(self._family, bound, m) for m in given}
            forward.image_mask = functools.reduce(torch.logical_or, masks.values())
            forward.video_mask = masks.get("video")
            forward.labels = self._labels(bound)
            # A family says here what it cannot do with a later turn's images.
            self._family.blocks(bound)
        elif embeds is not None:
            self._warn_of_merged(embeds)
        elif wanted == 1 and ids is not None and ids.shape[1] > 1:
            self._check_whole(ids)
        # Multimodal positions are found by the ids, and such a model says itself what it lacks.
        return merged and (forward.chosen_positions or not self._family.multimodal_positions)

    def _merged(self, bound: dict[str, Any]) -> dict[str, VisionCapture]:
        """Return what is known of features that the caller has merged; empty: not of all."""
        found: dict[str, VisionCapture] = {}
        for modality in self._family.encoders:
            mask = placeholder_mask(self._family, bound, modality)
            if not bool(mask.any()):
                continue
            embeds = bound["inputs_embeds"]
            capture = self._captures.merged(modality, embeds, mask.to(embeds.device))
            if capture is None:
                return {}
            found[modality] = capture
        return found

    def _warn_of_merged(self, embeds: Tensor) -> None:
        """Say once that a forward's images, if it has any, cannot be pruned."""
        if self._warned or embeds.shape[1] == 1:
            return
        self._warned = True
        logger.warning(
            "a forward got inputs_embeds of %d tokens and no pixels: images that are merged in "
            "them are not pruned; pass input_ids and pixels, or input_ids beside inputs_embeds "
            "whose features the model's own %s computed under this config",
            embeds.shape[1],
            self._family.encoder_method,
        )

    def _mask_of_layer_0(self, mask: Any) -> Any:
        """Return the caller's mask, of several by kind of layer the one that layer 0 would get.

        Only layer 0 tells how long the sequence is; masks of other kinds may be sized by layers
        that hold fewer tokens.
        """
        return mask.get(self._family.layer_kind(0)) if isinstance(mask, dict) else mask

    def _labels(self, bound: dict[str, Any]) -> Tensor | None:
        if not self._family.joins_views:
            return None
        ids: Tensor | None = bound.get("input_ids")
        return token_labels(bound["inputs_embeds"]) if ids is None else ids

    def _check_whole(self, input_ids: Tensor) -> None:
        """Raise if a part of a prompt, as ``generate`` passes it, holds images without pixels.

        Before transformers 5.23 chunks of a prompt lose their images, in silence.
        """
        for token in self._family.placeholders.values():
            if bool(input_ids.eq(token).any()):
                raise UnsupportedModelError(
                    "a part of the prompt has image tokens, but came without its images: "
                    "pass their pixels and leave prefill_chunk_size, which is not supported, "
                    "unset; or this model is an assistant, which is given none: apply nothing to it"
                )
