"""vLLM's input side: a picture takes as many places of a prompt as its tokens that will be kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing import PromptUpdateDetails

from prunetune.config import PruningConfig
from prunetune.errors import UnsupportedModelError
from prunetune.tokens import keep_count
from prunetune.vllm.engine import current, is_gapped
from prunetune.vllm.fits import ARCHITECTURES

TOTAL = "prunetune_total"
"""Name under which the model is told how many tokens a picture has before pruning."""


@dataclass
class Shortened(PromptUpdateDetails):  # type: ignore[misc]
    """What stands in a prompt for a pruned picture.

    Attributes:
        total: Its tokens before pruning. vLLM's cache of processed pictures keeps this.
    """

    total: int = 0


def kept_of(config: PruningConfig, total: int) -> int:
    """Return how many of a picture's image tokens stay."""
    return keep_count(total, config.stages[0].retention, total)


def shortened(content: Any) -> Shortened:
    """Return what stands in a prompt for a pruned picture.

    Args:
        content: What vLLM would put there: token ids, or ``PromptUpdateDetails``.

    Raises:
        UnsupportedModelError: The picture's tokens lie in several runs.
    """
    details = content
    if not isinstance(content, PromptUpdateDetails):
        details = PromptUpdateDetails.from_seq(list(content))
    full: list[int] = list(details.full)
    mask = torch.ones(len(full), dtype=torch.bool, device="cpu")
    if details.is_embed is not None:
        mask = details.is_embed(full)
    places = mask.nonzero().flatten().tolist()
    total = len(places)
    if total and places[-1] - places[0] + 1 != total:
        raise UnsupportedModelError(
            "prunetune: this model spreads a picture's tokens over several runs of its prompt; "
            "send pictures that it does not cut up"
        )
    gone = set(places[kept_of(current(), total) :])
    # ``is_embed`` finds its tokens by their id, wherever they are.
    left = [token for i, token in enumerate(full) if i not in gone]
    return Shortened(left, details.is_embed, total)


def _shorten(update: Any, items: Sequence[Any]) -> Any:
    """Return an update of a prompt that puts a pruned picture there, and tells the model of it."""

    def of(item: int) -> Shortened:
        content = update.content
        made = shortened(content(item) if callable(content) else content)
        field = MultiModalBatchedField(keep_on_cpu=True)
        data = torch.tensor(made.total, device="cpu")
        items[item][TOTAL] = MultiModalFieldElem(data=data, field=field)
        return made

    return replace(update, **{"replacement" if hasattr(update, "replacement") else "insertion": of})


@cache
def pruned_processor(base: Any) -> Any:
    """Return the subclass of a model's processor whose pictures are pruned."""

    class Pruned(base):  # type: ignore[misc]
        def _get_prompt_updates(
            self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
        ) -> list[Any]:
            updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
            # Not by ``get``: a modality of which a prompt has nothing is not there.
            return [
                _shorten(u, out_mm_kwargs[u.modality]) if u.modality in out_mm_kwargs else u
                for u in updates
            ]

        def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
            """Tell pictures of one config from those of another, wherever they are kept."""
            mark = current().digest()[:16]
            hashes = super()._get_mm_hashes(inputs)
            return {name: [f"{each}-{mark}" for each in of] for name, of in hashes.items()}

        def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
            ids, placeholders = super()._maybe_apply_prompt_updates(mm_items, mm_res)
            if is_gapped(current()):
                _check_reach(self.info, len(ids), mm_res.prompt_updates)
            return ids, placeholders

    Pruned.__name__ = Pruned.__qualname__ = f"Pruned{base.__name__}"
    return Pruned


def _check_reach(info: Any, length: int, updates: Mapping[str, Any]) -> None:
    """Raise if a prompt's original positions go beyond those that the model knows.

    vLLM counts what is kept: such a prompt may fit into ``max_model_len``.
    """
    totals = [of[0].content.total for items in updates.values() for of in items]
    reach = length + sum(total - kept_of(current(), total) for total in totals)
    most = int(info.get_hf_config().get_text_config().max_position_embeddings)
    if reach > most:
        raise ValueError(
            f"prunetune: this prompt has positions up to {reach}, dropped tokens included, and the "
            f"model knows {most}; send fewer or smaller pictures"
        )


@cache
def pruned_info(base: Any, model_type: str) -> Any:
    """Return the subclass of a model's processing info that knows what pruning changes."""

    class Info(base):  # type: ignore[misc]
        def get_supported_mm_limits(self) -> Mapping[str, int | None]:
            limits = dict(super().get_supported_mm_limits())
            if "video" in limits and not ARCHITECTURES[model_type].videos:
                # Frames stand apart in the prompt: how many tokens each keeps is known too late.
                # Not taken away: vLLM looks for the processor's settings for videos there.
                limits["video"] = 0
            return limits

        def get_mm_max_tokens_per_item(
            self, seq_len: int, mm_counts: Mapping[str, int]
        ) -> Mapping[str, int] | None:
            most = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
            if most is None:
                return None
            return {name: max(1, kept_of(current(), n)) for name, n in most.items()}

    Info.__name__ = Info.__qualname__ = f"Pruned{base.__name__}"
    return Info


def pruned_factories(factories: Any, model_type: str) -> dict[str, Any]:
    """Return what ``register_processor`` is given for a model's pruning subclass.

    Args:
        factories: What vLLM's own class has; each a class, or a function that picks one.
        model_type: Of the model.
    """

    def info(ctx: Any) -> Any:
        made = factories.info(ctx)
        own: Any = type(made)
        made.__class__ = pruned_info(own, model_type)
        return made

    def processor(made_info: Any, dummy_inputs: Any, **kwargs: Any) -> Any:
        made = factories.processor(made_info, dummy_inputs, **kwargs)
        own: Any = type(made)
        made.__class__ = pruned_processor(own)
        return made

    return {"processor": processor, "info": info, "dummy_inputs": factories.dummy_inputs}
