"""vLLM's model classes, pruning: made on demand, ``models.LlavaNextForConditionalGeneration__...``.

vLLM names the class that it loads by a text; what follows two underscores tells its cache of facts
about classes apart by vLLM's release and the config's positions.
"""

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tp_group
from vllm.multimodal import MULTIMODAL_REGISTRY

from prunetune.errors import UnsupportedModelError
from prunetune.vllm import positions as places
from prunetune.vllm.choosing import Chooser, as_encoded
from prunetune.vllm.engine import current
from prunetune.vllm.fits import ARCHITECTURES
from prunetune.vllm.layout import Layout, as_prompt, unpacked, whole
from prunetune.vllm.names import accept_new_names
from prunetune.vllm.processor import IDS, LAYOUT, pruned_factories
from prunetune.vllm.towers import attention_module, tapped
from prunetune.vllm.trace import NOTES, Kept


class Pruning:
    """What stands before a model class of vLLM: the encoder returns the features that stay."""

    supports_mm_device_do_normalize = False
    """Scorers read normalised pixels: vLLM then normalises them before the model."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._chooser = Chooser(vllm_config.model_config.hf_config, current())
        self._seen: Any = None
        if self._chooser.reads_attention:
            model: Any = self
            module = attention_module(model, self._chooser.family)
            module.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen = module, args[0] if args else next(iter(kwargs.values())), kwargs

    # On CPUs vLLM measures the encoder outside of inference mode: tensors made in that mode would
    # meet weights that ask for gradients. So nothing here enters it.
    @torch.no_grad()
    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the features that stay of each picture (or video), with their places."""
        layouts = [unpacked(numbers) for numbers in kwargs.pop(LAYOUT, ())]
        parts = list(kwargs.pop(IDS, ()))
        self._seen = None
        base: Any = super()
        features = base.embed_multimodal(**kwargs)
        if features is None or not len(features):
            return features
        modality = "video" if "pixel_values_videos" in kwargs else "image"
        if not any(name.startswith("pixel_values") for name in kwargs):
            raise UnsupportedModelError("prunetune: features without pictures cannot be scored")
        # Of Qwen3-VL each row holds features of several layers of the tower.
        width = self._width(features[0])
        rows = [part[:, :width] for part in features]
        if not parts and ARCHITECTURES[current().model.model_type].in_views:
            raise UnsupportedModelError(
                "prunetune: the prompt of a picture is missing, which says how its views lie; this "
                "release of vLLM is not supported"
            )
        layouts = layouts or [whole(len(part), current()) for part in rows]
        for layout, part in zip(layouts, rows, strict=True):
            if layout.total != len(part):
                raise UnsupportedModelError(
                    f"prunetune: a picture takes {layout.total} places of its prompt and has "
                    f"{len(part)} features; this release of vLLM is not supported"
                )
        captures = self._captures(kwargs, rows, modality, as_prompt(layouts, parts))
        out = []
        for number, (capture, part, given) in enumerate(zip(captures, rows, features, strict=True)):
            alive, states = self._chooser.kept(capture, part)
            alive, states = self._agreed(alive, states)
            if not layouts[number].holds(alive):
                raise UnsupportedModelError("prunetune: a picture kept another count than promised")
            if NOTES.on:
                NOTES.kept.append(Kept(len(part), tuple(alive.tolist())))
            left = torch.cat([states, given[alive, width:]], 1)
            carried = self._places(alive, layouts[number], number, kwargs)
            out.append(left if carried is None else places.carried(left, carried))
        return out

    def _width(self, features: Tensor) -> int:
        return int(getattr(self, "visual_dim", features.shape[1]))

    def _captures(
        self,
        kwargs: dict[str, Any],
        rows: Sequence[Tensor],
        modality: str,
        prompt: tuple[Tensor, Tensor],
    ) -> list[Any]:
        seen, self._seen = self._seen, None
        states = None if seen is None else seen[1]
        arguments, states = as_encoded(self._chooser.family, kwargs, modality, states)
        attention = None if seen is None else tapped(seen[0], states, seen[2])  # type: ignore[arg-type]
        captures = self._chooser.captures(arguments, rows, modality, attention, prompt)
        group = get_tp_group()
        if group.world_size > 1:
            self._chooser.share(captures, lambda t: group.all_reduce(t) / group.world_size)
        return captures

    def _agreed(self, alive: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the first rank chose: a last bit that differs must not part the ranks."""
        group = get_tp_group()
        if group.world_size == 1:
            return alive, states
        return group.broadcast(alive), group.broadcast(states)

    def _places(self, alive: Tensor, layout: Layout, number: int, data: Any) -> Tensor | None:
        """Return places that vLLM shall hand back with a picture's states; packed: None.

        Args:
            alive: ``[k]`` int64, which of the picture's tokens stay.
            layout: Of the picture.
            number: Of the picture in the call.
            data: The call's arguments.
        """
        return None


class Original:
    """What stands before ``Pruning`` where positions are the original ones."""

    supports_mrope = True
    supports_multimodal_pruning = True
    supported_video_pruning_methods = ("evs",)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        # Behind the base class, which would take it for a request to prune videos by itself.
        # What the runner asks once the model is loaded.
        multimodal = vllm_config.model_config.multimodal_config
        object.__setattr__(multimodal, "is_multimodal_pruning_enabled", _yes)

    def _visual(self, input_ids: Any, device: Any) -> Tensor:
        family: Any = self._chooser.family  # type: ignore[attr-defined]
        ids = torch.as_tensor(input_ids, device=device)
        known = torch.tensor(sorted(family.placeholders.values()), device=device)
        return torch.isin(ids, known)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Called by vLLM before each part of a prefill, with that part's features.

        Returns:
            The features alone, the prompt's positions, and how far the next one is ahead.
        """
        ahead = self._ahead(mrope_positions)
        if not len(multimodal_embeddings):
            return [], mrope_positions, ahead
        visual = self._visual(input_ids, mrope_positions.device)
        states, found = self._find(
            visual, multimodal_embeddings, mrope_positions, num_computed_tokens
        )
        return states, found, ahead

    def _ahead(self, positions: Tensor) -> int:
        """Return how far the position of the first generated token is ahead of its number."""
        raise NotImplementedError

    def _find(
        self, visual: Tensor, embeddings: Sequence[Tensor], positions: Tensor, done: int
    ) -> tuple[list[Tensor], Tensor]:
        raise NotImplementedError


class Gapped(Original):
    """Plain rotary positions with gaps."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        text = vllm_config.model_config.hf_config.get_text_config()
        self._last_position = int(text.max_position_embeddings) - 1

    def get_mrope_input_positions(self, input_tokens: Any, mm_features: Any) -> tuple[Tensor, int]:
        """Return a prompt's positions as known before its pictures are encoded."""
        pictures = [
            (int(feature.mm_position.offset), unpacked(feature.data[LAYOUT].data))
            for _, feature in places.spans(mm_features)
        ]
        return places.gapped(len(input_tokens), pictures)

    def _ahead(self, positions: Tensor) -> int:
        return int(positions[2, 0])

    def _find(
        self, visual: Tensor, embeddings: Sequence[Tensor], positions: Tensor, done: int
    ) -> tuple[list[Tensor], Tensor]:
        return places.ungapped(visual, embeddings, positions, done)

    def _places(self, alive: Tensor, layout: Layout, number: int, data: Any) -> Tensor | None:
        return layout.places.to(alive)[alive, None]

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Give the text model plain positions, none beyond its table of angles."""
        if positions.dim() == 2:
            positions = positions[0]
        base: Any = super()
        return base.forward(input_ids, positions.clamp_max(self._last_position), *args, **kwargs)


class Triples(Original):
    """Time, row and column (Qwen-VL)."""

    def get_mrope_input_positions(self, input_tokens: Any, mm_features: Any) -> tuple[Tensor, int]:
        """Return a prompt's positions as known before its pictures are encoded."""
        pictures = []
        for slots, feature in places.spans(mm_features):
            data = {name: elem.data for name, elem in feature.data.items()}
            pictures.append((slots, places.extent_of(*self._grid(data, None))))
        return places.triples(len(input_tokens), pictures)

    def _ahead(self, positions: Tensor) -> int:
        # Text (at least a marker) follows every picture.
        return int(positions[0, -1]) + 1 - positions.shape[1]

    def _grid(self, data: dict[str, Any], number: int | None) -> tuple[tuple[int, int, int], float]:
        """Return frames, rows and columns of a picture's tokens, and positions from frame to frame.

        Args:
            data: vLLM's arguments, of one picture or of several.
            number: Which of several.
        """
        at = slice(None) if number is None else number
        name = "video_grid_thw" if "video_grid_thw" in data else "image_grid_thw"
        frames, rows, cols = (int(n) for n in data[name][at].tolist())
        config: Any = self.config.vision_config  # type: ignore[attr-defined]
        merge = int(config.spatial_merge_size)
        pace = 1.0
        if name.startswith("video") and data.get("second_per_grid_ts") is not None:
            seconds = torch.as_tensor(data["second_per_grid_ts"]).flatten()[number or 0]
            pace = float(seconds) * float(getattr(config, "tokens_per_second", 1.0))
        return (frames, rows // merge, cols // merge), pace

    def _find(
        self, visual: Tensor, embeddings: Sequence[Tensor], positions: Tensor, done: int
    ) -> tuple[list[Tensor], Tensor]:
        return places.placed(visual, embeddings, positions, done)

    def _places(self, alive: Tensor, layout: Layout, number: int, data: Any) -> Tensor | None:
        grid, pace = self._grid(data, number)
        return places.thw_of(alive, grid, pace)


def _yes() -> bool:
    return True


@cache
def pruned_model(model_type: str, positions: str) -> type:
    """Return the pruning subclass of vLLM's class for a model type."""
    arch = ARCHITECTURES[model_type]
    base = accept_new_names(getattr(importlib.import_module(arch.module), arch.own))
    kinds: tuple[type, ...] = (Pruning, base)
    if model_type.startswith("qwen"):
        kinds = (Triples, *kinds)
    elif positions == "original":
        kinds = (Gapped, *kinds)
    made: type = type(arch.name, kinds, {"__module__": __name__})
    factories = pruned_factories(base._processor_factory, model_type)  # type: ignore[attr-defined]
    made = MULTIMODAL_REGISTRY.register_processor(**factories)(made)
    return made


def __getattr__(name: str) -> Any:
    arch, _, kind = name.partition("__")
    known = {a.name: model_type for model_type, a in ARCHITECTURES.items()}
    if arch not in known or not kind:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_model(known[arch], kind.rpartition("__")[2])
