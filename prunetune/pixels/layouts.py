"""What the processors make of a picture's size, and which smaller size leaves fewer tokens.

One class a layout; a family names the one that its processor follows (``Family.resizing``). Sizes
are (height, width) throughout; what is called *used* are the pixels that the processor would have
scaled the picture to, by its own limits and its own grid, before padding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from prunetune.pixels.field import Pixels

Size = tuple[int, int]

_STEPS = 64
"""Scales that are tried, where nothing says at which one a number of tiles changes."""


class Layout(ABC):
    """How the size of a picture becomes a number of tokens."""

    skips: ClassVar[tuple[str, ...]] = ()
    """Steps of the processor that are done already once pictures come at the size of here."""

    @abstractmethod
    def smaller(self, size: Size, given: Mapping[str, Any], pixels: Pixels) -> Size:
        """Return the size that a picture is to have; never larger than it is without.

        Args:
            size: Of the picture, upright.
            given: The processor's settings of this call, by name.
            pixels: Of the config.
        """

    def film(self, frames: int, size: Size, processor: Any, pixels: Pixels) -> Size:
        """Return the size that a video's frames are to have; theirs, where none leaves fewer."""
        return size


class Native(Layout):
    """Qwen-VL: every picture at its own size, in units of 28 or 32 pixels."""

    def limits(self, given: Mapping[str, Any]) -> tuple[int, int]:
        """Return the fewest and the most pixels of a picture, by a processor's settings."""
        return int(given["size"]["shortest_edge"]), int(given["size"]["longest_edge"])

    def widened(self, size: Size, factor: int) -> Size:
        """Return the size that the processor scales from."""
        return size

    def smaller(self, size: Size, given: Mapping[str, Any], pixels: Pixels) -> Size:
        """Return what the processor would make of it under a lower ``max_pixels``."""
        factor = int(given["patch_size"]) * int(given["merge_size"])
        if not given.get("do_resize", True):
            return _stepped(size, factor, pixels)
        low, high = self.limits(given)
        start = self.widened(size, factor)
        used = fitted(start, factor, low, high)
        cap = max(pixels.cap(math.prod(used)), min(low, math.prod(used)))
        if math.prod(used) <= cap:
            return size
        # Twice: what comes out below its least size it would enlarge again.
        found = fitted(fitted(start, factor, low, cap), factor, low, high)
        return found if math.prod(found) < math.prod(used) else size

    def film(self, frames: int, size: Size, processor: Any, pixels: Pixels) -> Size:
        """Ask the processor what it makes of the frames, whatever its limits are over."""
        factor, patch = int(processor.patch_size) * int(processor.merge_size), processor.patch_size
        moments = math.ceil(frames / int(processor.temporal_patch_size))

        def used(at: Size) -> int:
            patches = int(processor.get_num_of_video_patches(frames, *at, {}))
            return patches * int(patch) ** 2 // moments

        before = used(size)
        cap = pixels.cap(before)
        if before <= cap:
            return size
        found = fitted(size, factor, 0, cap)
        if used(found) > math.prod(found):  # Below its minimum, to which it would enlarge them.
            found = fitted(size, factor, 0, used(found))
        return found if used(found) < before else size


class Volume(Native):
    """GLM: the same, but its limits count the pixels of both moments of a patch."""

    def limits(self, given: Mapping[str, Any]) -> tuple[int, int]:
        """Return what a picture may have of them."""
        low, high = super().limits(given)
        moments = int(given["temporal_patch_size"])
        return -(-low // moments), high // moments

    def widened(self, size: Size, factor: int) -> Size:
        """Pictures that are thinner than a unit are enlarged first, not stretched."""
        scale = max(1.0, factor / min(size))
        return int(size[0] * scale), int(size[1] * scale)


class Enlarged(Native):
    """PaddleOCR-VL: as Qwen-VL, but pictures that are thinner than a unit are enlarged first."""

    def widened(self, size: Size, factor: int) -> Size:
        """Return it a unit thick, along each side in turn."""
        height, width = size
        if height < factor:
            height, width = factor, round(width * factor / height)
        if width < factor:
            height, width = round(height * factor / width), factor
        return height, width


class AnyResolution(Layout):
    """LLaVA-NeXT, LLaVA-OneVision: the tiles that lose the least of a picture, and a thumbnail."""

    def smaller(self, size: Size, given: Mapping[str, Any], pixels: Pixels) -> Size:
        """Scale what fits into the tiles; a picture that is smaller than that stays."""
        from transformers.image_processing_utils import select_best_resolution

        rows, cols = select_best_resolution(size, given["image_grid_pinpoints"])
        scale = min(rows / size[0], cols / size[1])
        used = size[0] * scale * size[1] * scale
        return _scaled(size, scale * math.sqrt(pixels.cap(used) / used))


class Canvas(Layout):
    """InternVL: a canvas of tiles whose shape is the picture's, and a thumbnail."""

    def smaller(self, size: Size, given: Mapping[str, Any], pixels: Pixels) -> Size:
        """Return the canvas of the tiles that are left: the processor chooses by shape alone."""
        if not given.get("crop_to_patches") or int(given["max_patches"]) <= 1:
            return size
        tile = int(given["size"]["height"]), int(given["size"]["width"])
        least, most = int(given["min_patches"]), int(given["max_patches"])
        before = _canvas(size, tile, least, most)
        area = math.prod(tile)
        left = math.floor(pixels.cap(math.prod(before) * area) / area + 1e-9)
        for count in range(max(left, least, 1), max(least, 1) - 1, -1):
            if count >= math.prod(before):
                return size
            grid = _canvas(size, tile, least, count)
            made = grid[0] * tile[0], grid[1] * tile[1]
            # Of shapes that several canvases have the processor may still take a larger one.
            if math.prod(_canvas(made, tile, least, most)) <= count:
                return made
        return size


class Covering(Canvas):
    """Ovis 2: as few tiles as see nearly all of a picture at its own size, and a thumbnail."""

    def smaller(self, size: Size, given: Mapping[str, Any], pixels: Pixels) -> Size:
        """Scale it as little as leaves few enough tiles; at least one."""
        if not given.get("crop_to_patches") or not given.get("use_covering_area_grid", True):
            return super().smaller(size, given, pixels)
        side, most = int(given["size"]["height"]), int(given["max_patches"])
        before, area = _covering(size, side, most), side**2
        left = max(1, math.floor(pixels.cap(before * area) / area + 1e-9))
        found = size
        for step in range(_STEPS, 0, -1):
            if _covering(found, side, most) <= left:
                return found
            found = _scaled(size, (step - 1) / _STEPS)
        return _scaled(size, side / max(size))


class LongestEdge(Layout):
    """Idefics 3, SmolVLM: every picture at one longest edge, cut into tiles, and a whole view."""

    skips = ("do_resize",)

    def smaller(self, size: Size, given: Mapping[str, Any], pixels: Pixels) -> Size:
        """Scale what the processor would have cut; at least to one tile."""
        used = size
        if given.get("do_resize", True):
            edge = float(given["size"]["longest_edge"]) / max(size)
            used = _scaled(size, edge, enlarge=True)
        if not given.get("do_image_splitting"):
            return used
        tile = int(given["max_image_size"]["longest_edge"])
        share = pixels.cap(math.prod(used)) / math.prod(used)
        return _scaled(used, max(math.sqrt(share), min(1.0, tile / max(used))))


class Edge(Layout):
    """Pixtral: every picture at its own size up to a longest edge, in whole units."""

    def smaller(self, size: Size, given: Mapping[str, Any], pixels: Pixels) -> Size:
        """Scale what the processor would have scaled it to, down to whole units."""
        patch = given["patch_size"]
        unit = int(patch if isinstance(patch, int) else dict(patch)["height"])
        edge = int(given["size"]["longest_edge"])
        used = size
        if given.get("do_resize", True):
            over = max(1.0, max(size) / edge)
            used = _whole((int(size[0] / over), int(size[1] / over)), unit, math.ceil)
        area = math.prod(used)
        cap = pixels.cap(area)
        if area <= cap:
            return size
        scale = math.sqrt(cap / area)
        found = _whole((used[0] * scale, used[1] * scale), unit, math.floor)
        return found if math.prod(found) < area else size


LAYOUTS: dict[str, Layout] = {
    "native": Native(),
    "volume": Volume(),
    "enlarged": Enlarged(),
    "tiles": AnyResolution(),
    "canvas": Canvas(),
    "covering": Covering(),
    "longest_edge": LongestEdge(),
    "edge": Edge(),
}
"""By the name that families have in ``resizing``."""


def fitted(size: Size, factor: int, low: float, high: float) -> Size:
    """Return what a Qwen-VL processor scales a picture to, in whole units of ``factor`` pixels.

    Args:
        size: Of the picture.
        factor: Pixels of a unit.
        low: Fewest pixels.
        high: Most pixels.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(*size, factor, low, high)
    return int(height), int(width)


def _stepped(size: Size, factor: int, pixels: Pixels) -> Size:
    """Return a smaller size in whole units, of a picture that is in whole units."""
    cap = pixels.cap(math.prod(size))
    return size if math.prod(size) <= cap else fitted(size, factor, 0, cap)


def _scaled(size: Size, scale: float, *, enlarge: bool = False) -> Size:
    if scale >= 1 and not enlarge:
        return size
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def _whole(size: tuple[float, float], unit: int, way: Callable[[float], int]) -> Size:
    """Return a size in whole units, at least one along each side."""
    height, width = (max(1, way(side / unit)) * unit for side in size)
    return height, width


def _canvas(size: Size, tile: Size, least: int, most: int) -> Size:
    """Return rows and columns of the tiles that InternVL's processor takes for a picture."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        get_optimal_tiled_canvas,
    )

    cols, rows = get_optimal_tiled_canvas(size, tile, least, most)
    return rows, cols


def _covering(size: Size, side: int, most: int) -> int:
    """Return how many tiles Ovis 2's processor cuts a picture into."""
    from transformers.models.ovis2.image_processing_pil_ovis2 import get_min_tile_covering_grid

    return math.prod(get_min_tile_covering_grid(size, side, most)) if most > 1 else 1
