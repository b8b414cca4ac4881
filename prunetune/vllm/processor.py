"""vLLM's input side: a picture takes as many places of a prompt as its tokens that will be kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing import PromptUpdateDetails

from prunetune.families import Family
from prunetune.vllm.choosing import family_like
from prunetune.vllm.engine import current, is_gapped
from prunetune.vllm.fits import ARCHITECTURES
from prunetune.vllm.layout import Layout, kept_of, layout_of

LAYOUT = "prunetune_layout"
"""Name under which the model is told where a picture's tokens lie, and how many stay."""
IDS = "prunetune_ids"
"""Name under which it is given the tokens of a picture's part of the prompt, where text is among
them."""


@dataclass
class Shortened(PromptUpdateDetails):  # type: ignore[misc]
    """What stands in a prompt for a pruned picture.

    Attributes:
        layout: Where its tokens lie. vLLM's cache of processed pictures keeps this.
        before: Its part of the prompt before pruning, where the model has to be given it.
    """

    layout: Layout | None = None
    before: tuple[int, ...] = ()


def shortened(content: Any, family: Callable[[], Family] | None) -> Shortened:
    """Return what stands in a prompt for a pruned picture.

    Args:
        content: What vLLM would put there: token ids, or ``PromptUpdateDetails``.
        family: Makes the model's family view, where each view is a run of its own; else None.

    Raises:
        UnsupportedModelError: The picture's tokens lie in several runs that are no views.
    """
    details = content
    if not isinstance(content, PromptUpdateDetails):
        details = PromptUpdateDetails.from_seq(list(content))
    full: list[int] = list(details.full)
    mask = torch.ones(len(full), dtype=torch.bool, device="cpu")
    if details.is_embed is not None:
        mask = details.is_embed(full)
    layout = layout_of(full, mask, current(), family)
    # ``is_embed`` finds its tokens by their id, wherever they are.
    left = [full[i] for i in layout.left.tolist()]
    return Shortened(left, details.is_embed, layout, tuple(full) if family is not None else ())


def _shorten(update: Any, items: Any, family: Callable[[], Family] | None) -> Any:
    """Return an update of a prompt that puts a pruned picture there, and tells the model of it."""

    def of(item: int) -> Shortened:
        content = update.content
        made = shortened(content(item) if callable(content) else content, family)
        field = MultiModalBatchedField(keep_on_cpu=True)
        assert made.layout is not None
        told = {LAYOUT: made.layout.packed()}
        if family is not None:
            told[IDS] = torch.tensor(made.before, device="cpu")
        for name, data in told.items():
            items[item][name] = MultiModalFieldElem(data=data, field=field)
        return made

    return replace(update, **{"replacement" if hasattr(update, "replacement") else "insertion": of})


@cache
def pruned_processor(base: Any, in_views: bool) -> Any:
    """Return the subclass of a model's processor whose pictures are pruned.

    Args:
        base: vLLM's own.
        in_views: Whether each view of a picture is a run of the prompt.
    """

    class Pruned(base):  # type: ignore[misc]
        @cached_property
        def _family(self) -> Family:
            return family_like(self.info.get_hf_config())

        def _get_prompt_updates(
            self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
        ) -> list[Any]:
            updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
            family = (lambda: self._family) if in_views else None
            # Not by ``get``: a modality of which a prompt has nothing is not there.
            return [
                _shorten(u, out_mm_kwargs[u.modality], family) if u.modality in out_mm_kwargs else u
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
    layouts = [of[0].content.layout for items in updates.values() for of in items]
    reach = length + sum(run.size - run.kept for layout in layouts for run in layout.runs)
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
        made.__class__ = pruned_processor(own, ARCHITECTURES[model_type].in_views)
        return made

    return {"processor": processor, "info": info, "dummy_inputs": factories.dummy_inputs}
