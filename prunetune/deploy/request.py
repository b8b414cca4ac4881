"""The request that a bench times: pictures of noise and a prompt of a given length."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunetune.deploy.shapes import Shape
from prunetune.errors import ConfigError
from prunetune.families import Family

_QUESTION = "Describe the image in detail."
_STEPS, _LEAST_SIDE = 64, 16


@dataclass(frozen=True)
class Request:
    """Inputs of ``generate``; all rows have the same lengths.

    Attributes:
        inputs: By name.
        images: Image tokens of each image of a row.
        text: Other tokens of a row.
    """

    inputs: Mapping[str, Tensor]
    images: tuple[int, ...]
    text: int

    @property
    def image_tokens(self) -> int:
        """Image tokens of a row."""
        return sum(self.images)


def tokens_of(shape: Shape, size: tuple[int, int] | None) -> tuple[int, int, tuple[int, int]]:
    """Return (views, image tokens, picture size) of a picture of ``size``.

    Raises:
        ConfigError: The shape takes pictures of one size only, or in whole units.
    """
    if shape.unit:
        return _native(shape, size or shape.picture)
    side = int(shape.vision["image_size"])
    grid = side // int(shape.vision["patch_size"])
    if not shape.pinpoints:
        if size is not None and size != (side, side):
            raise ConfigError(
                f"--image-size: received {size[0]}x{size[1]}, allowed {side}x{side} for "
                f"--shape {shape.name}: its tower resizes every picture to that"
            )
        return 1, grid * grid, (side, side)
    from transformers.models.llava_next.modeling_llava_next import (
        LlavaNextModel,
        image_size_to_num_patches,
    )

    size = size or shape.picture
    pinpoints = [list(pair) for pair in shape.pinpoints]
    views = int(image_size_to_num_patches(list(size), pinpoints, side))
    packer: Any = object.__new__(LlavaNextModel)
    torch.nn.Module.__init__(packer)
    packer.config = shape.config()
    packed, _ = packer.pack_image_features(
        [torch.zeros(views, grid * grid, 1, dtype=torch.float32, device="cpu")],
        torch.tensor([size], device="cpu"),
        vision_feature_select_strategy="full",
        image_newline=torch.zeros(1, dtype=torch.float32, device="cpu"),
    )
    return views, len(packed[0]), size


def _native(shape: Shape, size: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    """Return what ``tokens_of`` does where a picture keeps its size, in units of a token."""
    if any(side % shape.unit for side in size):
        raise ConfigError(
            f"--image-size: received {size[0]}x{size[1]}, allowed multiples of {shape.unit} for "
            f"--shape {shape.name}"
        )
    return 1, size[0] * size[1] // shape.unit**2, size


def random_request(
    shape: Shape,
    *,
    device: Any,
    dtype: Any,
    batch: int,
    images: int,
    prompt_tokens: int,
    size: tuple[int, int] | None,
) -> Request:
    """Return a request for a model of random weights: every row has other pictures and words."""
    views, count, size = tokens_of(shape, size)
    random = torch.Generator(device="cpu").manual_seed(0)
    placeholder = int(shape.config().image_token_id)
    ids = torch.randint(3, placeholder - 3, (batch, prompt_tokens), generator=random, device="cpu")
    pictures = torch.full((batch, images * count), placeholder, device="cpu")
    # A word or two come first, as in every chat template.
    head = min(4, prompt_tokens // 2)

    def noise(*extent: int) -> Tensor:
        drawn = torch.randn(extent, generator=random, dtype=torch.float32, device="cpu")
        return drawn.to(device, dtype)

    inputs = {"input_ids": torch.cat([ids[:, :head], pictures, ids[:, head:]], 1).to(device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if shape.unit:
        patch = int(shape.vision["patch_size"])
        grid = (1, size[0] // patch, size[1] // patch)
        moments = int(shape.vision["temporal_patch_size"])
        inputs["pixel_values"] = noise(batch * images * grid[1] * grid[2], 3 * moments * patch**2)
        inputs["image_grid_thw"] = torch.tensor([grid] * (batch * images), device=device)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == placeholder).int()
        return Request(inputs, (count,) * images, prompt_tokens)
    side = int(shape.vision["image_size"])
    pixels = noise(batch * images, views, 3, side, side)
    if shape.pinpoints:
        inputs["pixel_values"] = pixels
        inputs["image_sizes"] = torch.tensor([size] * (batch * images), device=device)
    else:
        inputs["pixel_values"] = pixels[:, 0]
    return Request(inputs, (count,) * images, prompt_tokens)


def processed_request(
    loaded: Any,
    family: Family,
    *,
    device: Any,
    batch: int,
    images: int,
    prompt_tokens: int | None,
    size: tuple[int, int] | None,
) -> Request:
    """Return a request made by a model's own processor, its text brought to ``prompt_tokens``.

    Raises:
        ConfigError: The chat template alone has more tokens, or the images differ in length.
    """
    from prunetune.calibration import Sample, encode

    pictures = tuple(noise(size or (672, 672), seed) for seed in range(images))
    samples = [Sample(pictures, _QUESTION, id=str(row)) for row in range(batch)]
    inputs = dict(encode(loaded.processor, samples))
    ids = inputs["input_ids"]
    marks = ids[0].eq(family.image_token_id)
    text = int((~marks).sum())
    if prompt_tokens is not None:
        if prompt_tokens < text:
            raise ConfigError(
                f"--prompt-tokens: received {prompt_tokens}, allowed {text} or more: so many has "
                "this model's chat template with a short question"
            )
        # Repeat a word of the question: the first text token after the last image.
        after = int(marks.nonzero()[-1]) + 1
        word = after + int((~marks[after:]).nonzero()[0]) if after < len(marks) else 0
        times = torch.ones(ids.shape[1], dtype=torch.long, device=ids.device)
        times[word] += prompt_tokens - text
        inputs = {
            name: value.repeat_interleave(times, dim=1)
            if isinstance(value, Tensor) and value.shape == ids.shape
            else value
            for name, value in inputs.items()
        }
        text = prompt_tokens
    image_tokens = int(marks.sum())
    if image_tokens % images:
        raise ConfigError(f"--images: {images} pictures of one size take unequal token counts")
    return Request(
        placed(inputs, loaded.model.dtype, device), (image_tokens // images,) * images, text
    )


def placed(inputs: Mapping[str, Any], dtype: Any, device: Any) -> dict[str, Tensor]:
    """Return a processor's tensors on a device, those of real numbers in the model's format."""
    return {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    }


def noise(size: tuple[int, int], seed: int) -> Any:
    """Return a picture of noise, height and width in pixels."""
    from PIL import Image

    random = torch.Generator(device="cpu").manual_seed(seed)
    pixels = torch.randint(0, 256, (*size, 3), generator=random, dtype=torch.uint8, device="cpu")
    return Image.frombytes("RGB", (size[1], size[0]), pixels.numpy().tobytes())


def largest_within(
    count: Callable[[tuple[int, int]], int], size: tuple[int, int], most: int, unit: int = 1
) -> tuple[int, int] | None:
    """Return the largest picture size, of that shape, whose tokens are at most ``most``.

    Tiles make counts jump up and down, so sizes are tried one after another.

    Args:
        count: Tokens of a picture of a height and a width.
        size: Height and width of the picture as it is.
        most: Tokens that it may have.
        unit: Of both sides, in pixels.

    Returns:
        Height and width; None where pictures of any size have more tokens.
    """
    steps = [k / _STEPS for k in range(_STEPS, 0, -1)]
    tried = [(round(size[0] * s / unit) * unit, round(size[1] * s / unit) * unit) for s in steps]
    sizes = [pair for pair in dict.fromkeys(tried) if min(pair) >= max(unit, _LEAST_SIDE)]
    whole = count(size)
    if whole > most and sizes and count(sizes[-1]) == whole:
        # Views of a fixed number.
        return None
    return next((pair for pair in sizes if count(pair) <= most), None)
