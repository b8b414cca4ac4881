"""What training minimises: answers, and what the heads read off the states on the way."""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.tiny.batches import PREFIX, TEXT_TOKENS, Batch
from training.tiny.fast import Forward
from training.tiny.model import GROUND_PARTS, THING_PARTS, Heads, vocabulary
from training.tiny.painting import TONES
from training.tiny.views import UNKNOWN

PATCH_PLACE_AFTER = 3  # decoder layers that a visual token has to work out where it is
WORD_PLACE_AFTER = 8  # decoder layers that a word has to find the place of what it names
APART_AFTER = 11  # and to compare two places, or to know what the named object is
TOWER = 0.3  # weight of what the tower's heads read off beside the answers
DENSE_PARTS = (("shape", 7, 1.0), ("color", 8, 1.0), ("digit", 11, 2.0))


def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias).float()


def unit(x: Tensor) -> Tensor:
    """States at root mean square 1: new heads on raw ones would swamp the other gradients."""
    return F.rms_norm(x, x.shape[-1:])


def tower_loss(heads: Heads, hidden: Tensor, cls: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Patches name their object and point at its centre; CLS says what is in its view.

    Args:
        hidden: (views, 65, width) states that the LLM will see; cls: (views, width).
    """
    _, patches = hidden.split([1, hidden.shape[1] - 1], 1)
    logits = linear(heads.dense, patches).flatten(0, 1)
    # the checkpoint's head has 7 rows for "no shape or one of six", then colors, then digits
    parts = logits.split([size for _, size, _ in DENSE_PARTS], 1)
    loss = logits.new_zeros(())
    for (name, _, weight), part in zip(DENSE_PARTS, parts, strict=True):
        target = labels[name].flatten()
        share = torch.where(target > 0, 1.0, 0.15)
        each = F.cross_entropy(part, target, reduction="none")
        loss = loss + weight * (each * share).sum() / share.sum()
    even = unit(patches)
    loss = loss + known_loss(linear(heads.tone, even).flatten(0, 1), labels["tone"].flatten())
    grounds = linear(heads.ground, even).flatten(0, 1)
    loss = loss + 1.5 * parts_loss(grounds, labels["ground"].view(-1, 3), GROUND_PARTS)
    on = labels["shape"].flatten() > 0
    offset = linear(heads.offset, even).flatten(0, 1)[on]
    loss = loss + 2 * F.smooth_l1_loss(offset, labels["offset"].view(-1, 2)[on], beta=0.05)
    seen = F.binary_cross_entropy_with_logits(linear(heads.cls, cls), labels["seen"].flatten(0, 1))
    return loss + 6 * seen


def known_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy where the target is known (not negative), 0 where none is."""
    known = target >= 0
    return F.cross_entropy(logits[known], target[known], reduction="sum") / known.sum().clamp(1)


def parts_loss(logits: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Mean of one `known_loss` for each part: (n, sum of sizes) against (n, parts)."""
    parts = zip(logits.split(sizes, 1), targets.unbind(1), strict=True)
    return torch.stack([known_loss(part, target) for part, target in parts]).mean()


def place_loss(head: torch.nn.Linear, states: Tensor, place: Tensor, on: Tensor) -> Tensor:
    """Smooth L1 between read-off and true centres (shares of the picture) where `on`."""
    return F.smooth_l1_loss(linear(head, unit(states))[on], place[on], beta=0.05)


def text_inputs(
    forward: Forward, visual: Tensor, text: dict[str, Tensor], kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder inputs, positions and mask for packed questions behind one image.

    Args:
        visual: (rows, kept visual tokens, width).
        text: fields of `Packed`, stacked.
        kept: (rows, kept visual tokens), each one's place among all visual tokens.
    """
    embed, ids = forward.model.language_model.embed_tokens, vocabulary()
    rows, tokens, _ = visual.shape
    prefix = embed(torch.tensor([[ids[word] for word in PREFIX]])).expand(rows, -1, -1)
    h = torch.cat([prefix, visual, embed(text["ids"])], 1)
    start = len(PREFIX) + tokens
    before = torch.arange(len(PREFIX)).expand(rows, -1)
    positions = torch.cat([before, kept + len(PREFIX), text["positions"]], 1)
    segments = text["segments"]
    same = segments[:, :, None] == segments[:, None, :]
    visible = same & torch.ones(TEXT_TOKENS, TEXT_TOKENS, dtype=torch.bool).tril()
    mask = torch.zeros(rows, 1, TEXT_TOKENS, start + TEXT_TOKENS, dtype=h.dtype)
    mask[:, 0, :, start:].masked_fill_(~visible, -1e4)
    return h, positions, mask


def by_token(labels: Tensor, token: Tensor, newline: float) -> Tensor:
    """(pictures, views, patches, k) -> (pictures, kept tokens, k); newlines have a value of theirs.

    Args:
        token: (pictures, kept tokens), each one's index into patches of all views.
    """
    padded = F.pad(labels.flatten(1, 2), (0, 0, 0, 1), value=newline)
    return padded.gather(1, token[..., None].expand(-1, -1, padded.shape[-1]))


def seen_loss(forward: Forward, heads: Heads, batch: Batch) -> Tensor:
    """The tower's share of `step_loss` alone: a fifth of the work, for pictures besides."""
    pixels = batch.pixels.flatten(0, 1).to(heads.tone.weight.dtype)
    return TOWER * tower_loss(heads, *forward.see(pixels), batch.labels)


def step_loss(
    forward: Forward, lm_head: torch.nn.Module, heads: Heads, batch: Batch
) -> tuple[Tensor, dict[str, float], Tensor]:
    """Loss of one batch, its parts, and (right, type) of every answer word."""
    dtype = lm_head.weight.dtype
    pictures, views = batch.pixels.shape[:2]
    hidden, cls = forward.see(batch.pixels.flatten(0, 1).to(dtype))
    tower = tower_loss(heads, hidden, cls, batch.labels)
    visual = forward.visual_tokens(hidden.unflatten(0, (pictures, views)), batch.order)
    visual = visual.gather(1, batch.kept[..., None].expand(-1, -1, visual.shape[-1]))
    h, positions, mask = text_inputs(forward, visual, batch.text, batch.kept)
    shared = h.shape[1] - TEXT_TOKENS
    states = forward.read(h, positions, shared, mask)

    _, seen, _ = states[PATCH_PLACE_AFTER - 1].split([len(PREFIX), visual.shape[1], TEXT_TOKENS], 1)
    token = batch.order[batch.kept]
    place = by_token(batch.labels["place"], token, 0)
    on = by_token(batch.labels["shape"][..., None], token, 0)[..., 0] > 0
    patch_place = place_loss(heads.patch_place, seen, place, on)
    shown = torch.cat([batch.labels["tone"][..., None], batch.labels["ground"]], -1)
    shown = by_token(shown, token, UNKNOWN).flatten(0, 1)
    sizes = len(TONES), *GROUND_PARTS
    token_loss = parts_loss(linear(heads.token, unit(seen)).flatten(0, 1), shown, sizes)
    _, words = states[WORD_PLACE_AFTER - 1].split([shared, TEXT_TOKENS], 1)
    word = batch.text["place"]
    word_place = place_loss(heads.word_place, words, word, ~word[..., 0].isnan())

    _, words = states[APART_AFTER - 1].split([shared, TEXT_TOKENS], 1)
    apart = batch.text["apart"]
    apart_loss = place_loss(heads.apart, words, apart, ~apart[..., 0].isnan())
    even = unit(words)
    what = parts_loss(
        linear(heads.meant, even).flatten(0, 1), batch.text["meant"].flatten(0, 1), THING_PARTS
    ) + parts_loss(
        linear(heads.about, even).flatten(0, 1), batch.text["about"].flatten(0, 1), GROUND_PARTS
    )

    _, final = states[-1].split([shared, TEXT_TOKENS], 1)
    asked = batch.text["targets"] >= 0
    logits, targets = lm_head(final[asked]).float(), batch.text["targets"][asked]
    weights = batch.text["weights"][asked]
    answer = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    loss = answer + TOWER * tower + 2 * patch_place + 4 * word_place + 4 * apart_loss
    loss = loss + 0.4 * what + 0.2 * token_loss
    parts = {"answer": answer, "tower": tower, "patch": patch_place, "word": word_place}
    parts |= {"apart": apart_loss, "what": what, "token": token_loss}
    right = logits.argmax(-1) == targets
    outcome = torch.stack([right.long(), batch.text["types"][asked]])
    return loss, {name: part.item() for name, part in parts.items()}, outcome
