"""References to named tensors and plain facts, and back."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from prunetune.runtime.taps import LayerTap
from prunetune.runtime.vision import ImageCapture, VisionCapture
from prunetune.search.reference import Prompts, Reference
from prunetune.tokens import ImageGeometry

_PLAIN = ("position_ids", "image_mask", "tail", "log_probs")
_PROMPT = ("input_ids", "valid", "query")
_OPTIONAL = ("vision_attention", "vision_map", "patch_entropy")


def pack(reference: Reference) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a reference as contiguous tensors and JSON facts; pixels are not kept."""
    tensors: dict[str, Tensor] = {name: getattr(reference, name) for name in _PLAIN}
    tensors |= {name: getattr(reference.prompts, name) for name in _PROMPT}
    for kind, (cos, sin) in reference.embeddings.items():
        tensors |= {f"cos.{kind}": cos, f"sin.{kind}": sin}
    if reference.blocks is not None:
        tensors["blocks"] = reference.blocks
    tensors |= {f"injected.{k}": part for k, part in enumerate(reference.injected)}
    tensors |= {f"states.{k}": states for k, states in reference.states.items()}
    for k, tap in reference.taps.items():
        # A tap's source is the state entering its layer: kept once, above.
        for name, part in (("target", tap.target), ("row", tap.row)):
            if part is not None:
                tensors[f"{name}.{k}"] = part
    for i, image in enumerate(reference.capture.images):
        for f in fields(ImageGeometry):
            tensors[f"image.{i}.{f.name}"] = getattr(image.geometry, f.name)
        for name in _OPTIONAL:
            value = getattr(image, name)
            if value is not None:
                tensors[f"image.{i}.{name}"] = value
    facts = {
        "first": reference.first,
        "correct": reference.correct,
        "answers": reference.prompts.answers,
        "seeds": [image.seed for image in reference.capture.images],
    }
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, facts


def unpack(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Reference:
    """Return the reference that ``pack`` was given, on the CPU.

    Raises:
        KeyError: A tensor is missing.
    """
    states = {int(k.split(".")[1]): v for k, v in tensors.items() if k.startswith("states.")}
    injected = sum(k.startswith("injected.") for k in tensors)
    kinds = [k.removeprefix("cos.") for k in tensors if k.startswith("cos.")]
    layers = [int(k.split(".")[1]) for k in tensors if k.startswith("target.")]
    return Reference(
        first=facts["first"],
        prompts=Prompts(
            **{name: tensors[name] for name in _PROMPT}, answers=facts["answers"], pixels={}
        ),
        states=states,
        taps={
            k: LayerTap(states[k], tensors[f"target.{k}"], tensors.get(f"row.{k}")) for k in layers
        },
        embeddings={kind: (tensors[f"cos.{kind}"], tensors[f"sin.{kind}"]) for kind in kinds},
        capture=VisionCapture(
            [_image(tensors, i, s) for i, s in enumerate(facts["seeds"])], joined=True
        ),
        blocks=tensors.get("blocks"),
        correct=facts["correct"],
        injected=[tensors[f"injected.{k}"] for k in range(injected)],
        **{name: tensors[name] for name in _PLAIN},
    )


def _image(tensors: dict[str, Tensor], i: int, seed: int) -> ImageCapture:
    geometry = {f.name: tensors[f"image.{i}.{f.name}"] for f in fields(ImageGeometry)}
    image = ImageCapture(ImageGeometry(**geometry), seed=seed)
    for name in _OPTIONAL:
        setattr(image, name, tensors.get(f"image.{i}.{name}"))
    return image


def to_device(reference: Reference, device: torch.device) -> Reference:
    """Move a reference to the model's device; nothing is copied where it is there already."""
    if reference.tail.device == device:
        return reference
    tensors, facts = pack(reference)
    return unpack({name: tensor.to(device) for name, tensor in tensors.items()}, facts)
