"""Processors whose pictures and videos are made smaller first; all else stays the processor's.

What is resized are the pictures as the processor has prepared them: read, upright, as RGB. So what
it makes of EXIF, transparency, palettes and CMYK is the same with and without.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from prunetune.errors import ConfigError
from prunetune.pixels.field import Pixels
from prunetune.pixels.layouts import LAYOUTS, Layout
from prunetune.pixels.resample import resample

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

PARTS = ("image_processor", "video_processor")
_ATTRIBUTE = "_prunetune_pixels"


class Resizing:
    """What is added in front of a picture processor's (or video processor's) own class."""

    def _preprocess(self, *args: Any, **given: Any) -> Any:
        layout, pixels = self.__dict__[_ATTRIBUTE]
        own: Any = super()
        if "videos" in given:
            films = [self._film(video, LAYOUTS[layout], pixels) for video in given.pop("videos")]
            return own._preprocess(*args, videos=films, **given)
        images, *others = args if args else (given.pop("images"),)
        smaller = _Smaller(LAYOUTS[layout], given, pixels)
        images = _mapped(images, _tiled(len(images), others, given), smaller)
        done = {name: False for name in LAYOUTS[layout].skips if name in given}
        return own._preprocess(images, *others, **{**given, **done})

    def _film(self, video: Any, layout: Layout, pixels: Pixels) -> Any:
        size = int(video.shape[-2]), int(video.shape[-1])
        return resample(video, layout.film(len(video), size, self, pixels))

    def to_dict(self) -> dict[str, Any]:
        """Return the processor's own settings."""
        own: Any = super()
        found: dict[str, Any] = own.to_dict()
        found.pop(_ATTRIBUTE, None)
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        base = next(kind for kind in type(self).__mro__[1:] if kind is not Resizing)
        return _remade, (base, self.__dict__)


class _Smaller:
    """Makes one picture smaller, in a call with these settings."""

    def __init__(self, layout: Layout, given: Mapping[str, Any], pixels: Pixels) -> None:
        self.layout, self.given, self.pixels = layout, given, pixels

    def __call__(self, image: Any) -> Any:
        size = int(image.shape[-2]), int(image.shape[-1])
        return resample(image, self.layout.smaller(size, self.given, self.pixels))


def _tiled(count: int, args: Sequence[Any], given: Mapping[str, Any]) -> list[bool]:
    """Return which pictures are tiled: LLaVA-OneVision's only where a prompt has one."""
    numbers = given.get("batch_num_images") or (args[0] if args else None)
    if not isinstance(numbers, list):
        return [True] * count
    return [int(number) == 1 for number in numbers for _ in range(int(number))]


def _mapped(images: Any, tiled: Sequence[bool], smaller: Callable[[Any], Any]) -> list[Any]:
    return [
        ([smaller(part) for part in image] if isinstance(image, (list, tuple)) else smaller(image))
        if whether
        else image
        for image, whether in zip(images, tiled, strict=True)
    ]


@cache
def _kind(base: type) -> type:
    # Its name is what is saved with a processor.
    return type(base.__name__, (Resizing, base), {"__module__": base.__module__})


def _remade(base: type, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(_kind(base))
    made.__dict__.update(state)
    return made


def resized(processor: Any, config: "PruningConfig") -> Any:
    """Return a processor that makes pictures and videos smaller first, as a config says.

    For data loaders and for servers that have no model at hand; ``apply`` does the same to the
    processor that it is given. The result can be pickled where the processor can.

    Example::

        inputs = prunetune.resized(processor, config)(images=images, text=texts)

    Args:
        processor: Of the config's model: what ``AutoProcessor`` loads. It is not changed.
        config: With ``pixels``; without, the processor itself is returned.

    Raises:
        ConfigError: The config's family sees every picture on a fixed grid, or the processor is
            not one whose pictures can be made smaller, or already makes them so.
    """
    return at_level(processor, config.pixels, config.model.model_type)


def at_level(processor: Any, pixels: Pixels | None, model_type: str) -> Any:
    """Return a processor at one level; see ``resized``."""
    if pixels is None or not pixels.shrinks:
        return processor
    layout = layout_of(model_type)
    if level_of(processor) == pixels:
        return processor
    made = copy.copy(processor)
    for name, part in _parts(processor, pixels).items():
        setattr(made, name, _remade(type(part), {**part.__dict__, _ATTRIBUTE: (layout, pixels)}))
    return made


def put_on(processor: Any, pixels: Pixels, model_type: str) -> Callable[[], None]:
    """Make a processor resize from now on.

    Returns:
        What makes it as it was; a second call does nothing.

    Raises:
        ConfigError: As ``resized``.
    """
    other = at_level(processor, pixels, model_type)
    if other is processor:
        return lambda: None
    before = {name: getattr(processor, name) for name in _parts(processor, pixels)}
    now = {name: getattr(other, name) for name in before}
    for name, part in now.items():
        setattr(processor, name, part)

    def undo() -> None:
        for name, part in before.items():
            # Somebody may have put another one there meanwhile.
            if getattr(processor, name, None) is now[name]:
                setattr(processor, name, part)

    return undo


def level_of(processor: Any) -> Pixels | None:
    """Return the level at which a processor resizes; None for an ordinary one."""
    part = getattr(processor, PARTS[0], None)
    if not isinstance(part, Resizing):
        return None
    found: Pixels = part.__dict__[_ATTRIBUTE][1]
    return found


def layout_of(model_type: str) -> str:
    """Return the name of a family's layout.

    Raises:
        ConfigError: No level makes the family's tokens fewer.
    """
    from prunetune.families import FAMILIES

    layout = FAMILIES.get(model_type).resizing if model_type in FAMILIES else ""
    if layout:
        return layout
    able = ", ".join(name for name in FAMILIES if FAMILIES.get(name).resizing)
    raise ConfigError(
        f"pixels: {model_type} sees every picture on one fixed grid, so a smaller picture has as "
        f"many tokens, or nothing is known of how its processor sizes them; leave pixels out and "
        f"prune (or average: preset pool). Families that it makes smaller: {able}"
    )


def _parts(processor: Any, pixels: Pixels) -> dict[str, Any]:
    found = {name: getattr(processor, name, None) for name in PARTS}
    images = found[PARTS[0]]
    if not hasattr(images, "_preprocess"):
        raise ConfigError(
            f"processor: received {type(processor).__name__}, allowed the model's processor as "
            "AutoProcessor loads it, with an image_processor of transformers; the config has "
            f"pixels ({pixels.shown}), so pictures are made smaller before it"
        )
    known = level_of(processor)
    if known is not None:
        raise ConfigError(
            f"processor: it makes pictures smaller already ({known.shown}), and the config asks "
            f"for {pixels.shown}; remove that handle first, or pass another processor"
        )
    return {name: part for name, part in found.items() if hasattr(part, "_preprocess")}
