"""What a bench is about: which config on which model, and the request it is asked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prunetune.budget import check_keep, mean_retention, rebudget
from prunetune.config import Provenance, PruningConfig
from prunetune.deploy.bench import Case
from prunetune.deploy.memory import available, check_fits, needed
from prunetune.deploy.request import (
    Request,
    largest_within,
    processed_request,
    random_request,
    tokens_of,
)
from prunetune.deploy.shapes import Shape, build, count_parameters
from prunetune.errors import ConfigError
from prunetune.families import Family
from prunetune.models.devices import attn_named, device_named, device_of, dtype_named
from prunetune.models.options import differing
from prunetune.pixels import Pixels, shrinks
from prunetune.pixels.processors import at_level
from prunetune.presets import load_preset, read_preset
from prunetune.runtime.apply import family_of

PROMPT_TOKENS = 64
PICTURE = (672, 672)
"""Of a loaded model's request, where none is asked for."""


@dataclass(frozen=True)
class Asked:
    """What a request shall be.

    Attributes:
        batch: Prompts at once.
        images: Pictures a prompt.
        prompt_tokens: Text tokens of a prompt; None for 64, or what a model's own template has.
        new_tokens: To generate.
        size: Height and width of a picture; None for the shape's, or 672 x 672.
    """

    batch: int = 1
    images: int = 1
    prompt_tokens: int | None = None
    new_tokens: int = 32
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        family: View of the model.
        config: The config.
        request: What it is asked.
        note: What had to change to move the config onto a budget; empty if nothing.
        own: The request with pictures as small as the config makes them; None: it leaves them.
        smaller: The request with smaller pictures, of as many tokens as the config leaves on
            average; None where pictures of any size have more.
    """

    family: Family
    config: PruningConfig
    request: Request
    note: str
    smaller: Request | None = None
    own: Request | None = None

    @property
    def more(self) -> dict[str, Case]:
        """The rival that every user has: smaller pictures, nothing pruned."""
        return {} if self.smaller is None else {"resized": Case(None, self.smaller)}


class Wanted:
    """Which config shall be measured: a file's, or a preset's once the model is known.

    Args:
        path: A config file.
        preset: Name of a preset, in place of it.
        keep: Mean retention it is moved onto.

    Raises:
        ConfigError: Not exactly one of the two is given, or one is not valid.
    """

    def __init__(self, path: str | None, preset: str | None, keep: float | None) -> None:
        if (path is None) == (preset is None):
            received = "neither" if path is None else "both"
            raise ConfigError(
                f"CONFIG and --preset: received {received}, allowed one of them: a config file, or "
                "--preset NAME --keep B"
            )
        if keep is not None:
            check_keep(keep)
        if preset is not None:
            read_preset(preset)
        self.config = None if path is None else PruningConfig.load(path)
        self.path, self.preset, self.keep = path, preset, keep

    def config_for(self, model_type: str, num_layers: int, what: str) -> tuple[PruningConfig, str]:
        """Return the config for a model, and a note on what had to change.

        Raises:
            ConfigError: The file was made for another model type or depth.
        """
        if self.preset is not None:
            return load_preset(
                self.preset, model_type=model_type, num_layers=num_layers, keep=self.keep
            )
        assert self.config is not None
        ref = self.config.model
        if (ref.model_type, ref.num_layers) != (model_type, num_layers):
            raise ConfigError(
                f"{self.path} is for {ref.model_type} of {ref.num_layers} decoder layers, {what} "
                f"is {model_type} of {num_layers}; measure a preset there: --preset NAME --keep B"
            )
        if self.keep is None:
            return self.config, ""
        return rebudget(self.config, self.keep, num_layers)


def random_subject(
    wanted: Wanted,
    asked: Asked,
    shape: Shape,
    *,
    dtype: Any = None,
    device: Any = None,
    attn: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Subject:
    """Build a shape with random weights; everything is checked before memory is taken.

    Raises:
        ConfigError: The config does not fit the shape, or the shape not into memory.
    """
    import torch

    config, note = wanted.config_for(shape.model_type, shape.num_layers, f"--shape {shape.name}")
    if shrinks(config.pixels):
        raise ConfigError(
            f"{wanted.path} makes pictures smaller, which takes a processor; --shape {shape.name} "
            "has none: measure with --model"
        )
    # Random weights: that they are not the provenance's goes without saying.
    config = config.model_copy(update={"provenance": Provenance()})
    where = device_named(device)
    number = dtype_named(shape.dtype if dtype in (None, "auto") else dtype)
    attn = attn_named(attn) or "sdpa"
    views, count, _ = tokens_of(shape, asked.size)
    prompt = asked.prompt_tokens or PROMPT_TOKENS
    hf_config = shape.config()
    parameters = count_parameters(hf_config)
    tokens = asked.images * count + prompt + asked.new_tokens
    size = torch.empty(0, dtype=number, device="cpu").element_size()
    pictures = asked.batch * asked.images
    parts = needed(
        hf_config,
        parameters,
        size=size,
        batch=asked.batch,
        tokens=tokens,
        eager=attn == "eager",
        patches=pictures * shape.patches(views, count),
        views=pictures * views,
    )
    longest = int(hf_config.get_text_config().max_position_embeddings)
    if tokens > longest:
        raise ConfigError(
            f"a prompt and its answer have {tokens} tokens, allowed {longest} for --shape "
            f"{shape.name}; lower --images, --prompt-tokens or --new-tokens"
        )
    check_fits(f"--shape {shape.name}", parts, available(where), where)
    tell(f"building {shape.name}: {parameters / 1e9:.2f} billion random weights on {where}")
    family = family_of(build(shape, device=where, dtype=number, attn=attn))

    def ask(size: tuple[int, int] | None) -> Request:
        return random_request(
            shape,
            device=where,
            dtype=number,
            batch=asked.batch,
            images=asked.images,
            prompt_tokens=prompt,
            size=size,
        )

    smaller = _smaller(
        lambda size: tokens_of(shape, size)[1],
        asked.size or shape.picture,
        _left(config, count),
        shape.unit or 1,
    )
    return Subject(family, config, ask(asked.size), note, smaller and ask(smaller))


def _left(config: PruningConfig, tokens: int) -> int:
    """Return how many of a picture's tokens stages leave, a mean over the layers, rounded up."""
    return math.ceil(mean_retention(config.stages, config.model.num_layers) * tokens - 1e-9)


def _smaller(
    count: Callable[[tuple[int, int]], int], size: tuple[int, int], most: int, unit: int = 1
) -> tuple[int, int] | None:
    try:
        return largest_within(count, size, most, unit)
    except ConfigError:
        # Views of one fixed size.
        return None


def loaded_subject(wanted: Wanted, asked: Asked, model: str | None, **loading: Any) -> Subject:
    """Load a model: ``model``, or the one that the config names.

    Args:
        wanted: Which config.
        asked: Which request; its prompt is made by the model's own processor.
        model: ``tiny``, an alias, a hub id or a folder.
        loading: See ``prunetune.models.load_model``.
    """
    from prunetune.models import load_model

    ref = None if wanted.config is None else wanted.config.model
    name = model or (ref.name if ref else None)
    if not name:
        raise ConfigError("no model: name one with --model, or measure random weights with --shape")
    if model is None and ref is not None and loading.get("revision") is None:
        loading["revision"] = ref.revision
    own = None if wanted.config is None else wanted.config.provenance.processor
    loading["processor"], line = differing(own, loading.get("processor"))
    loaded = load_model(name, **loading)
    family = family_of(loaded.model)
    depth = len(family.layers)
    config, note = wanted.config_for(family.config.model_type, depth, f"--model {name}")

    kind = family.config.model_type

    def ask(
        size: tuple[int, int], batch: int, images: int, pixels: Pixels | None = None
    ) -> Request:
        return processed_request(
            replace(loaded, processor=at_level(loaded.processor, pixels, kind)),
            family,
            device=device_of(loaded.model),
            batch=batch,
            images=images,
            prompt_tokens=asked.prompt_tokens,
            size=size,
        )

    size = asked.size or PICTURE
    request = ask(size, asked.batch, asked.images)
    shrunk = shrinks(config.pixels)
    own_request = ask(size, asked.batch, asked.images, config.pixels) if shrunk else None
    left = _left(config, (own_request or request).images[0])
    smaller = _smaller(lambda pair: ask(pair, 1, 1).image_tokens, size, left)
    less = smaller and ask(smaller, asked.batch, asked.images)
    return Subject(
        family, config, request, "; ".join(filter(None, (note, line))), less, own_request
    )
