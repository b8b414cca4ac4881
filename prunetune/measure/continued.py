"""Questions about the same pictures: the unpruned prompt up to there is run once."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunetune.families import Family
from prunetune.families.base_configs import text_window
from prunetune.measure.own import Steps
from prunetune.measure.prompts import TOKEN_KINDS, Prompts, given_positions
from prunetune.measure.reference import OwnAnswer, Recorder, Reference
from prunetune.release import cache_argument
from prunetune.runtime.vision.tower import VisionCapture


@dataclass
class _Begun:
    """A prompt up to its last picture's end, over a cache.

    Attributes:
        digest: Of its tokens and pixels.
        tokens: How many it has.
        cache: Of its keys and values, and nothing behind them.
        reference: Of the first question.
    """

    digest: str
    tokens: int
    cache: Any
    reference: Reference


class ContinuingRecorder(Recorder):
    """A recorder that runs what consecutive prompts share up to their last picture once."""

    _begun: _Begun | None = None

    def record(
        self,
        prompts: Prompts,
        *,
        more: bool = False,
        own: int = 0,
        ends: frozenset[int] = frozenset(),
    ) -> Reference:
        """Run a batch of one through the unmodified model, from where the last one's pictures end.

        Args:
            prompts: Of one sample.
            more: Whether one about the same pictures comes next; what it goes on from is kept.
            own: Most tokens of the model's own answer; 0: it is not asked for.
            ends: Ids that end an answer.
        """
        digest = self._digest(prompts)
        begun = self._begun
        if begun is not None and digest == begun.digest:
            reference = self._go_on(prompts, begun)
        else:
            self._begun = begun = None
            reference = super().record(prompts, more=(more and bool(digest)) or own > 0)
            if digest:
                begun = _Begun(digest, reference.shared, self._cache, reference)
        reference.prefix = digest
        reference.seen = self.family.seen(prompts.pixels)
        self._begun = begun if more else None
        cache, self._cache = self._cache, None
        if own:
            reference.own = self._answer(prompts, reference, cache, own, ends)
        if self._begun is not None:
            _crop(cache, self._begun.tokens)
        return reference

    def _answer(
        self, prompts: Prompts, reference: Reference, cache: Any, most: int, ends: frozenset[int]
    ) -> OwnAnswer:
        """Decode greedily over a cache of the prompt, and of nothing behind it."""
        cache = self._of_prompt(prompts, reference.query + 1, cache)
        places = given_positions(self.family, prompts)
        steps, ids, final = Steps([], [], []), list[int](), reference.tail[None, :1]
        while len(ids) < most:
            chosen = int(self.family.logits(final)[0, -1].argmax())
            if chosen in ends:
                break
            ids.append(chosen)
            at = None if places is None else places[:, [reference.query]] + len(ids)
            final = self._run(
                input_ids=prompts.input_ids.new_full((1, 1), chosen),
                attention_mask=None,
                position_ids=at,
                use_cache=True,
                **cache_argument(self.family.base, cache),
            )
            steps.states.append(self._states)
            steps.embeddings.append(self._embeddings)
            steps.finals.append(final)
            self._states, self._targets, self._embeddings = {}, {}, {}
        return steps.answer(ids, reference)

    def _of_prompt(self, prompts: Prompts, tokens: int, cache: Any) -> Any:
        """Return a cache of a prompt's first tokens, from one that may hold some behind them."""
        held = int(cache.get_seq_length())
        window = text_window(self.family.text_model.config)
        if held == tokens or not (self.family.hybrid or (window is not None and held >= window)):
            _crop(cache, tokens)
            return cache
        # A state cannot forget, nor a window remember: the prompt is run once more by itself.
        places = given_positions(self.family, prompts)
        self._run(
            input_ids=prompts.input_ids[:, :tokens],
            attention_mask=prompts.valid[:, :tokens].long(),
            position_ids=None if places is None else places[:, :tokens],
            use_cache=True,
            **{n: v[:, :tokens] if n in TOKEN_KINDS else v for n, v in prompts.pixels.items()},
        )
        self._states, self._targets, self._embeddings = {}, {}, {}
        cache, self._cache = self._cache, None
        return cache

    def forget(self) -> None:
        """Let go of what further prompts would go on from."""
        self._begun = None

    def _digest(self, prompts: Prompts) -> str:
        image = prompts.input_ids[0] == self.family.image_token_id
        if not continues(self.family, prompts) or not bool(image.any()):
            return ""
        tokens = int(image.nonzero().max()) + 1
        # Of a prompt that ends with its picture, the question is a part of what is shared.
        return prefix_digest(prompts, tokens) if tokens <= int(prompts.query) else ""

    def _go_on(self, prompts: Prompts, begun: _Begun) -> Reference:
        first, start = begun.reference, begun.tokens
        places = given_positions(self.family, prompts)
        final = self._run(
            input_ids=prompts.input_ids[:, start:],
            # Qwen-VL would make positions of a mask that is as long as the whole prompt.
            attention_mask=None,
            position_ids=None if places is None else places[:, start:],
            use_cache=True,
            **cache_argument(self.family.base, begun.cache),
        )

        def behind(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old[None, :start], new], 1)

        self._states = {k: behind(first.states[k], new) for k, new in self._states.items()}
        for k, new in self._targets.items():
            target = first.taps[k].target
            assert target is not None
            self._targets[k] = behind(target, new)
        for kind, turned in self._embeddings.items():
            pairs = zip(first.embeddings[kind], turned, strict=True)
            self._embeddings[kind] = tuple(behind(old, new) for old, new in pairs)
        # Memos are a sample's own: some scorers read the question.
        images = [replace(image, memo={}) for image in first.images]
        self._capture = VisionCapture(images, joined=True)
        self._injected = first.injected
        return self._reference(prompts, final, None)


def _crop(cache: Any, tokens: int) -> None:
    """Make a cache hold its first ``tokens`` tokens."""
    # By how many to remove: since transformers 5.24 the only way.
    if surplus := int(cache.get_seq_length()) - tokens:
        cache.crop(-surplus)


def continues(family: Family, prompts: Prompts) -> bool:
    """Tell whether a prompt may go on over a cache of what is before and in its pictures.

    Not where tokens attend in both directions, to what has not been there yet, and not over caches
    of sliding windows, which forget what they would be cropped to, or of states, which forget
    nothing.
    """
    if family.hybrid:
        return False
    if text_window(family.text_model.config) is not None or family.prefix_problem() is not None:
        return False
    return family.blocks({"input_ids": prompts.input_ids, **prompts.pixels}) is None


def prefix_digest(prompts: Prompts, tokens: int) -> str:
    """Return a sha256 of a prompt's first tokens and of all its pixels, bit by bit.

    Args:
        prompts: Of one sample.
        tokens: How many count.
    """
    found = hashlib.sha256()
    inputs = {"input_ids": prompts.input_ids, **prompts.pixels}
    for name, value in sorted(inputs.items()):
        found.update(name.encode())
        if not isinstance(value, Tensor):
            found.update(repr(value).encode())
            continue
        if name == "input_ids" or name in TOKEN_KINDS:
            value = value[:, :tokens]
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
