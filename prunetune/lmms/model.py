"""The model ``prunetune`` of lmms-eval: a Hugging Face model under a pruning config."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from prunetune.errors import PrunetuneError
from prunetune.lmms.arguments import loaded_pruned
from prunetune.lmms.likelihood import continuation_loss
from prunetune.lmms.prompts import Messages, encode, media_of, user_turn
from prunetune.models.devices import device_of

logger = logging.getLogger(__name__)

_NEW_TOKENS = 1024
_PASSED = ("top_p", "top_k", "repetition_penalty", "length_penalty", "no_repeat_ngram_size")


class _Pruned(lmms):  # type: ignore[misc]
    """What both classes share; see ``Chat``."""

    def __init__(
        self,
        pretrained: str | None = None,
        config: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: Any = None,
        system_prompt: str | None = None,
        num_frames: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        del max_batch_size
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 1
        self._system_prompt = self._resolve_system_prompt(system_prompt or "")
        self._num_frames = num_frames
        self._pruned = loaded_pruned(pretrained, config, more)
        self._model, self.processor = self._pruned.loaded.model, self._pruned.loaded.processor
        if self._pruned.note:
            logger.warning(self._pruned.note)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> Any:
        """Make the model; what a user got wrong ends the process with one line and status 2."""
        try:
            return super().create_from_arg_string(arg_string, additional_config)
        except PrunetuneError as error:
            _leave(error)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        found: torch.device = device_of(self._model)
        return found

    def clean(self) -> None:
        """Take the config off and let the model go."""
        if self._pruned.handle is not None:
            self._pruned.handle.remove()
        del self._pruned, self._model
        super().clean()

    def _asked(self, messages: Messages) -> Messages:
        found = [dict(message) for message in messages]
        return self._apply_system_prompt(found, self._system_prompt)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _generate(
        self, conversations: Sequence[Messages], asked: Mapping[str, Any]
    ) -> list[GenerationResult]:
        """Return the answers to a batch of prompts, all with the same options."""
        inputs = encode(self.processor, conversations, num_frames=self._num_frames)
        inputs = inputs.to(self.device, self._model.dtype)
        ids = self._model.generate(**inputs, **_options(asked))
        length = inputs["input_ids"].shape[1]
        tokenizer = self.processor.tokenizer
        pads = {tokenizer.pad_token_id, None}
        found = []
        for row in ids[:, length:].tolist():
            text = _until(tokenizer.decode(row, skip_special_tokens=True), asked.get("until"))
            count = TokenCounts(output_tokens=sum(token not in pads for token in row))
            found.append(GenerationResult(text=text, token_counts=count))
        return found

    def _answered(self, asked: "list[tuple[Messages, dict[str, Any]]]") -> list[GenerationResult]:
        """Return the answers to prompts, each with its options of generation, in order."""
        answers: dict[int, GenerationResult] = {}
        began, tokens = time.perf_counter(), 0
        for batch in _batches(asked, self.batch_size):
            said = self._generate([asked[i][0] for i in batch], asked[batch[0]][1])
            for index, answer in zip(batch, said, strict=True):
                answers[index] = answer
                tokens += answer.token_counts.output_tokens
        seconds = time.perf_counter() - began
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / seconds if seconds else 0,
            additional_metrics={"rank": self.rank},
        )
        return [answers[index] for index in range(len(asked))]

    def _doc(self, task: str, split: str, number: Any) -> Any:
        return self.task_dict[task][split][number]

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return the loss of each continuation, and whether it is the greedy one.

        A loss, whatever the name: the least of a task's choices wins. In the wrapper of answers,
        because lmms-eval 0.7.3 makes a text of any other pair of numbers.
        """
        found = []
        for request in requests:
            context, target, visuals, number, task, split = request.args
            doc = self._doc(task, split, number)
            text = target if isinstance(target, str) else str(target(doc))
            prompt = self._asked(user_turn(_visuals(visuals, doc), context))
            inputs = encode(self.processor, [prompt], num_frames=self._num_frames)
            inputs = inputs.to(self.device, self._model.dtype)
            told: Any = continuation_loss(self._model, self.processor.tokenizer, inputs, text)
            found.append(GenerationResult(text=told))
        return found


class Chat(_Pruned):
    """Any task's messages, through the model's own chat template.

    ``--model_args config=FILE,pretrained=NAME,...``: see ``docs/benchmarks.md``. Without a config
    the model answers unpruned.
    """

    is_simple = False

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return the answer to each request."""
        asked = []
        for request in requests:
            _, messages, options, number, task, split = request.args
            asked.append((self._asked(messages(self._doc(task, split, number))), options))
        return self._answered(asked)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Return the answers of each request's rounds; the task says what is asked in each."""
        found = []
        for request in requests:
            _, messages, options, number, task, split = request.args
            doc, said, info = self._doc(task, split, number), [], None
            prompt: Any = messages(doc)
            while prompt is not None:
                said.append(self._answered([(self._asked(prompt), options)])[0].text)
                more = messages(
                    doc,
                    round_idx=len(said),
                    previous_output=list(said),
                    previous_round_info=info,
                )
                if not (isinstance(more, tuple) and len(more) == 4):
                    break
                prompt, ended, _, info = more
                prompt = None if ended else prompt
            found.append(said)
        return found


class Simple(_Pruned):
    """Pictures, then the task's text, as one turn (``--force_simple``)."""

    is_simple = True

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return the answer to each request."""
        asked = []
        for request in requests:
            context, options, visuals, number, task, split = request.args
            turn = user_turn(_visuals(visuals, self._doc(task, split, number)), context)
            asked.append((self._asked(turn), options))
        return self._answered(asked)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Refused: rounds are asked in messages."""
        raise NotImplementedError("leave --force_simple out: tasks of several rounds need messages")


def _visuals(visuals: Any, doc: Any) -> list[Any]:
    found = visuals(doc) if callable(visuals) else visuals
    return [visual for visual in found or () if visual is not None]


def _batches(asked: Any, size: int) -> Iterator[list[int]]:
    """Yield indices that go together: of the same options, and with pictures or all without."""
    groups: dict[Any, list[int]] = {}
    for index, (messages, options) in enumerate(asked):
        groups.setdefault((repr(options), bool(media_of(messages))), []).append(index)
    for group in groups.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


def _options(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's options as transformers' ``generate`` takes them; greedy by default."""
    temperature = float(asked.get("temperature") or 0)
    sampled = bool(asked.get("do_sample", temperature > 0)) and temperature > 0
    options: dict[str, Any] = {
        "max_new_tokens": int(asked.get("max_new_tokens") or asked.get("max_gen_toks") or 0)
        or _NEW_TOKENS,
        "do_sample": sampled,
        "num_beams": int(asked.get("num_beams") or 1),
        # The model's own settings may sample; a greedy run must not be told how.
        "temperature": temperature if sampled else None,
        "top_p": None,
        "top_k": None,
    }
    for name in _PASSED:
        value = asked.get(name)
        if value is not None and (sampled or name not in ("top_p", "top_k")):
            options[name] = value
    return options


def _until(text: str, until: Any) -> str:
    """Return a text up to where a task stops it.

    A blank line is every task's default and ends most answers early, so it does not count; the
    models that come with lmms-eval do the same.
    """
    marks = [until] if isinstance(until, str) else list(until or ())
    for mark in marks:
        if mark and mark != "\n\n":
            text = text.split(mark)[0]
    return text.strip()


def _leave(error: PrunetuneError) -> NoReturn:
    sys.stderr.write(f"error: prunetune: {' '.join(str(error).split())}\n")
    raise SystemExit(2) from None
