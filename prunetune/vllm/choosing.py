"""Which of a picture's features stay: prunetune's own families, scorers and choice."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunetune.config import PruningConfig
from prunetune.families import Family, VisionCall
from prunetune.families.base import TappedAttention
from prunetune.runtime.apply import family_of
from prunetune.runtime.choice.choose import Decisions, choose
from prunetune.runtime.choice.plan import Plan
from prunetune.runtime.vision.images import ImageTokens
from prunetune.runtime.vision.tower import ImageCapture, VisionTap
from prunetune.runtime.vision.views import join_views

ATTENTION = {"vision_attention", "vision_map"}


def family_like(hf_config: Any) -> Family:
    """Return the family view of a model of this config, without weights: enough for geometry.

    Raises:
        UnsupportedModelError: No family supports it.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        # Building a model writes to its config, and this one is vLLM's.
        return family_of(AutoModelForImageTextToText.from_config(copy.deepcopy(hf_config)))


class Chooser:
    """A config resolved for one model in vLLM.

    Args:
        hf_config: Of the model.
        config: The pruning config.

    Attributes:
        family: View of transformers' model of the same config.
        reads_attention: Whether a scorer asks for the vision tower's attention.
    """

    def __init__(self, hf_config: Any, config: PruningConfig) -> None:
        self.family = family_like(hf_config)
        self._plan = Plan(self.family, config)
        self._tap = VisionTap(self.family, self._plan.needs)
        self.reads_attention = bool(self._plan.needs & ATTENTION)

    @torch.no_grad()
    def captures(
        self,
        arguments: Mapping[str, Any],
        features: Sequence[Tensor],
        modality: str,
        seen: TappedAttention | None,
        prompt: tuple[Tensor, Tensor],
    ) -> list[ImageCapture]:
        """Return what scorers may know of each picture of an encoder call.

        Args:
            arguments: Of the call, by transformers' names; see ``as_encoded``.
            features: Each picture's, ``[n, d]``.
            modality: ``image`` or ``video``.
            seen: What the tower's attention was given; None: nothing asks for it.
            prompt: Slots of the pictures' tokens and a prompt around them; see ``as_prompt``.
        """
        if seen is not None:
            self._tap.take(seen)
        capture = self._tap.capture(arguments, features, modality)
        device = features[0].device
        if self.family.joins_views:
            slots, labels = prompt
            join_views(self.family, capture, [slots], labels[None])
        return [image.to(device) for image in capture.images]

    @torch.no_grad()
    def kept(self, capture: ImageCapture, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of a picture's tokens stay, ``[k]`` int64 ascending, and their states.

        Args:
            capture: What is known of the picture.
            features: ``[n, d]``.
        """
        slots = torch.arange(len(features), device=features.device)
        image = ImageTokens(slots, capture)
        restored = choose(
            self._plan, 0, [[image]], features[None], slots[None], None, Decisions(), memoise=False
        )
        states = features
        for _, at, new in restored:
            states = states.index_copy(0, at, new)
        return image.alive, states[image.alive]

    def share(self, captures: Sequence[ImageCapture], average: Any) -> None:
        """Let all ranks of a tensor-parallel engine know the same of the pictures.

        Each has some of the tower's heads, and scorers get the mean over all of them.

        Args:
            captures: Of one encoder call; changed.
            average: Takes a tensor and returns its mean over the ranks.
        """
        for capture in captures:
            for name in ATTENTION:
                value = getattr(capture, name)
                if value is not None:
                    setattr(capture, name, average(value))


def as_encoded(
    family: Family, arguments: Mapping[str, Any], modality: str, states: Tensor | None
) -> tuple[dict[str, Any], Tensor | None]:
    """Return an encoder call of vLLM as transformers would make it.

    Views that only pad the pictures of a request to one number of tiles are left out.

    Args:
        family: Of the model.
        arguments: By name.
        modality: ``image`` or ``video``.
        states: What the tower's attention was given, ``[views, patches, d]``, or None.

    Returns:
        The arguments, and the states of the views that are left.
    """
    arguments = dict(arguments)
    if "num_patches" in arguments and "pixel_attention_mask" in arguments:
        # transformers has all views of a sample in one row (Idefics 3); these are all of one.
        views = {name: arguments[name][None] for name in ("pixel_values", "pixel_attention_mask")}
        return arguments | views, states
    if modality == "video" or "image_sizes" not in arguments:
        return arguments, states
    values = list(arguments["pixel_values"])
    given = [len(value) for value in values]
    real = family.views(VisionCall(arguments, [], modality))
    arguments["pixel_values"] = torch.cat([v[:n] for v, n in zip(values, real, strict=True)])
    if states is not None:
        parts = zip(torch.split(states, given), real, strict=True)
        states = torch.cat([part[:n] for part, n in parts])
    return arguments, states
