"""Which tokens of a prompt are the question about an image, and their input embeddings.

A forward knows token ids, no words. What counts, for each image by itself: the tokens behind it,
up to the next one that ends a turn (as the model's configs name those that end what it generates)
or else to the prompt's end; without the tokens of further images and those that the configs name
for a use (``..._token_id``). Of several samples in one row, the tokens of the image's own. What is
said in later turns is left out, so that a conversation that is read again keeps what it kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.families import Family
from prunetune.models.devices import brought
from prunetune.runtime.layers.sight import Sight
from prunetune.runtime.vision.forward import Forward
from prunetune.runtime.vision.images import ImageTokens
from prunetune.runtime.vision.tower import ImageCapture

if TYPE_CHECKING:
    from prunetune.runtime.choice.plan import Plan

_ENDS = ("eos_token_id", "eot_token_id")
_NAMED = ("_token_id", "_token_index")


@dataclass(frozen=True)
class Marks:
    """Token ids with a use of their own.

    Attributes:
        ends: Those that end a turn.
        special: All of them.
    """

    ends: frozenset[int]
    special: frozenset[int]


def marks_of(family: Family) -> Marks:
    """Return what a model's configs say about its special tokens."""
    generation = getattr(family.model, "generation_config", None)
    known: dict[str, set[int]] = {}
    for config in (family.config, family.text_model.config, generation):
        for name, value in vars(config).items() if config is not None else ():
            if name.endswith(_NAMED):
                known.setdefault(name, set()).update(_whole(value))
    ends = frozenset().union(*(known.get(name, set()) for name in _ENDS))
    return Marks(ends, frozenset().union(*known.values()))


def _whole(value: Any) -> Iterable[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def question_slots(
    ids: Tensor, shown: Tensor, image_mask: Tensor, behind: int, marks: Marks
) -> Tensor:
    """Return which slots of a row are the question about an image, ``[t]`` int64 ascending.

    Args:
        ids: ``[S]`` int64.
        shown: ``[S]`` bool, what the prompt's last token sees, itself included.
        image_mask: ``[S]`` bool, True at the tokens of all images.
        behind: Slot of the image's last token.
        marks: Of the model.
    """
    slots = torch.arange(len(ids), device=ids.device)
    text = shown & ~image_mask & (slots > behind)
    ends = (text & _among(ids, marks.ends)).nonzero().flatten()
    if len(ends):
        text = text & (slots < ends[0])
    return (text & ~_among(ids, marks.special)).nonzero().flatten()


def _among(ids: Tensor, known: frozenset[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(known), dtype=torch.long, device=ids.device))


def embedded(family: Family, ids: Tensor) -> Tensor:
    """Return the input embeddings of tokens, ``[..., d]``, on the device of ``ids``."""
    table = family.text_model.get_input_embeddings()
    with torch.no_grad():
        rows: Tensor = table(brought(ids, table.weight.device))
    return brought(rows, ids.device)  # type: ignore[no-any-return]


def note_questions(
    plan: "Plan",
    call: Forward,
    rows: Sequence[Sequence[ImageTokens]],
    valid: Tensor,
    sight: Sight | None,
) -> None:
    """Give each image of a forward the question about it, where it has none yet.

    Args:
        plan: The config, resolved for the model.
        call: What the forward was given.
        rows: Its images.
        valid: ``[B, S]`` bool, real tokens.
        sight: Which tokens see which; None: all real ones before.
    """
    family, marks, mask = plan.family, plan.marks, call.image_mask
    if marks is None or mask is None or all(i.question is not None for row in rows for i in row):
        return
    ids = _ids(family, call, marks, valid.device)
    slots = torch.arange(ids.shape[1], device=ids.device)
    readers = None if sight is None else sight.readers(mask, call.query)
    for b, row in enumerate(rows):
        for image in row:
            last = image.slots[-1]
            if sight is None or readers is None:
                shown = valid[b]
                if call.query is not None:
                    shown = shown & (slots <= call.query[b])
            else:
                shown = sight.seen[b, readers[b, last]] & (slots <= readers[b, last])
            found = question_slots(ids[b], shown, mask[b], int(last), marks)
            image.asked = int(found[-1]) + 1 if len(found) else 0
            if call.ids is None and call.embeds is not None:
                image.question = brought(call.embeds[b].detach(), ids.device)[found]
            else:
                image.question = embedded(family, ids[b, found])


def note_prompt(
    family: Family,
    images: Sequence[ImageCapture],
    ids: Tensor,
    valid: Tensor,
    query: Tensor,
    image_mask: Tensor,
) -> None:
    """Give each image of one prompt the question about it, for trials that start from its states.

    Args:
        family: Of the model.
        images: Of the prompt, in order.
        ids: ``[S]`` int64; an answer may follow the prompt.
        valid: ``[S]`` bool, real tokens.
        query: 0-dim int64, slot of the prompt's last token.
        image_mask: ``[S]`` bool.
    """
    marks = marks_of(family)
    shown = valid & (torch.arange(len(ids), device=ids.device) <= query)
    parts = torch.split(image_mask.nonzero().flatten(), [image.length for image in images])
    for image, part in zip(images, parts, strict=True):
        found = question_slots(ids, shown, image_mask, int(part[-1]), marks)
        image.question = embedded(family, ids[found])


def _ids(family: Family, call: Forward, marks: Marks, device: Any) -> Tensor:
    """Return ``[B, S]`` int64 ids; of embeddings those of special tokens, -1 of all others."""
    if call.ids is not None:
        ids: Tensor = brought(call.ids, device)
        return ids
    if call.embeds is None:
        raise UnsupportedModelError(
            "the config asks for the question, and the forward got neither input_ids nor "
            "inputs_embeds; pass one of them"
        )
    embeds = brought(call.embeds, device)
    table = family.text_model.get_input_embeddings()
    ids = torch.full(embeds.shape[:2], -1, dtype=torch.long, device=device)
    for token in sorted(marks.special):
        if 0 <= token < table.weight.shape[0]:
            one = embedded(family, torch.tensor([token], dtype=torch.long, device=device))
            ids = ids.masked_fill(embeds.eq(one).all(-1), token)
    return ids


def question_end(marks: Marks | None, rows: Sequence[Sequence[ImageTokens]]) -> int | None:
    """Return how many slots of a forward its choices have looked at; None: at no question.

    Returns:
        0 where there was none to look at.
    """
    if marks is None or not rows:
        return None
    return max((image.asked for row in rows for image in row), default=0)
