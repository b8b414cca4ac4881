"""References to named tensors and plain facts, and back; several references to one batch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from prunetune.families.base_towers import Seen
from prunetune.measure.own import own_of, own_tensors
from prunetune.measure.reference import Reference
from prunetune.runtime.choice.taps import LayerTap
from prunetune.runtime.suffix import Prefix
from prunetune.runtime.vision.tower import ImageCapture, VisionCapture
from prunetune.tokens import ImageGeometry

_PLAIN = ("position_ids", "image_mask", "tail", "log_probs")
_OPTIONAL = ("vision_attention", "vision_map", "patch_entropy", "question")


def pack(reference: Reference) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a reference as contiguous tensors and JSON facts."""
    tensors: dict[str, Tensor] = {name: getattr(reference, name) for name in _PLAIN}
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
    for i, image in enumerate(reference.images):
        for f in fields(ImageGeometry):
            tensors[f"image.{i}.{f.name}"] = getattr(image.geometry, f.name)
        for name in _OPTIONAL:
            value = getattr(image, name)
            if value is not None:
                tensors[f"image.{i}.{name}"] = value
    facts = {
        "query": reference.query,
        "answer": reference.answer,
        "correct": reference.correct,
        "prefix": reference.prefix,
        "seen": asdict(reference.seen),
        "seeds": [image.seed for image in reference.images],
    }
    if reference.own is not None:
        tensors |= own_tensors(reference.own)
        facts["own"] = reference.own.ids
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
        query=facts["query"],
        answer=facts["answer"],
        states=states,
        taps={
            k: LayerTap(states[k], tensors[f"target.{k}"], tensors.get(f"row.{k}")) for k in layers
        },
        embeddings={kind: (tensors[f"cos.{kind}"], tensors[f"sin.{kind}"]) for kind in kinds},
        blocks=tensors.get("blocks"),
        images=[_image(tensors, i, s) for i, s in enumerate(facts["seeds"])],
        correct=facts["correct"],
        prefix=facts["prefix"],
        seen=Seen(**facts["seen"]),
        own=own_of(tensors, facts.get("own")),
        injected=[tensors[f"injected.{k}"] for k in range(injected)],
        **{name: tensors[name] for name in _PLAIN},
    )


def _image(tensors: dict[str, Tensor], i: int, seed: int) -> ImageCapture:
    geometry = {f.name: tensors[f"image.{i}.{f.name}"] for f in fields(ImageGeometry)}
    image = ImageCapture(ImageGeometry(**geometry), seed=seed)
    for name in _OPTIONAL:
        setattr(image, name, tensors.get(f"image.{i}.{name}"))
    return image


@dataclass
class Batch:
    """Samples that run together.

    Attributes:
        prefix: What they start from.
        answers: Token ids that follow each prompt; None where none do.
    """

    prefix: Prefix
    answers: list[list[int] | None]


def collate(
    references: Sequence[Reference],
    first_layer: int,
    device: torch.device,
    *,
    answers: bool,
    tapped: bool,
) -> Batch:
    """Return references as one left-padded batch; of a single one nothing is copied.

    Args:
        references: Of the samples.
        first_layer: Of a config's first stage. Where the states entering it are not kept, the
            batch starts from the last layer before it whose states are.
        device: Of the model.
        answers: Whether expected answers follow the prompts.
        tapped: Whether the first stage asks for the tap of the layer before it.
    """
    layer = min(first_layer, max(references[0].states))
    ends = [len(r.image_mask) if answers else r.query + 1 for r in references]
    width = max(ends)

    def together(parts: Sequence[Tensor]) -> Tensor:
        return _left_padded([p[:end] for p, end in zip(parts, ends)], width).to(device)

    tap = None
    if tapped and layer == first_layer and layer - 1 in references[0].taps:
        taps = [r.taps[layer - 1] for r in references]
        tap = LayerTap(together([t.source for t in taps]))
        for name in ("target", "row"):
            parts = [getattr(t, name) for t in taps]
            setattr(tap, name, None if parts[0] is None else together(parts))
    lengths = torch.tensor(ends, device="cpu")
    prefix = Prefix(
        layer=layer,
        hidden=together([r.states[layer] for r in references]),
        embeddings={
            kind: (
                together([r.embeddings[kind][0] for r in references]),
                together([r.embeddings[kind][1] for r in references]),
            )
            for kind in references[0].embeddings
        },
        position_ids=together([r.position_ids for r in references]),
        valid=(torch.arange(width, device="cpu") >= width - lengths[:, None]).to(device),
        image_mask=together([r.image_mask for r in references]),
        capture=VisionCapture([i.to(device) for r in references for i in r.images], joined=True),
        query=torch.tensor([width - e + r.query for r, e in zip(references, ends)], device=device),
        tap=tap,
        injected=[torch.cat(parts).to(device) for parts in zip(*(r.injected for r in references))],
        blocks=_blocks(references, ends, width, device),
    )
    return Batch(prefix, [r.answer if answers else None for r in references])


def _blocks(
    references: Sequence[Reference], ends: Sequence[int], width: int, device: torch.device
) -> Tensor | None:
    parts = [r.blocks[:end] for r, end in zip(references, ends) if r.blocks is not None]
    if len(parts) < len(references):
        return None
    # Padding attends causally, which is nothing to anybody.
    padded = [torch.nn.functional.pad(p, (width - len(p), 0), value=-1) for p in parts]
    return torch.stack(padded).to(device)


def _left_padded(parts: Sequence[Tensor], width: int) -> Tensor:
    if len(parts) == 1:
        return parts[0][None]
    out = parts[0].new_empty(len(parts), width, *parts[0].shape[1:])
    for row, part in zip(out, parts):
        row[: width - len(part)] = 0
        row[width - len(part) :] = part
    return out
