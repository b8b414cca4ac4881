"""What scorers need of the vision tower: one attention row, without an eager encoder."""

import functools
import inspect
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunetune.families import Family, VisionCall
from prunetune.families.base import TOWER_NEEDS, TappedAttention, refuse
from prunetune.models.devices import brought
from prunetune.numerics import exactly
from prunetune.runtime.compiled import never_compiled
from prunetune.runtime.vision.attention import attention_map, attention_row
from prunetune.tokens import ImageGeometry

SKETCH = 16
"""Side of a view's sketch."""


@dataclass
class ImageCapture:
    """One distinct image as the scorers see it.

    Attributes:
        geometry: Of all its tokens, separators included, on the model's device.
        vision_attention: ``[n]`` float32, 0 at separators; None when no scorer asked.
        vision_map: ``[views, patches, patches]`` float32; likewise.
        patch_entropy: ``[views, patches]`` float32; likewise.
        seed: Depends on the image's pixels only.
        sketch: ``[side, side]`` float32, a view in grey and small; None once views are joined.
        question: ``[t, d]`` input embeddings of the question about it, where a search knows it;
            None: the forward finds it in its prompt.
        memo: What a search need not compute again: scores, likenesses, selections.
    """

    geometry: ImageGeometry
    vision_attention: Tensor | None = None
    vision_map: Tensor | None = None
    patch_entropy: Tensor | None = None
    seed: int = 0
    sketch: Tensor | None = None
    question: Tensor | None = None
    memo: dict[str, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens the image takes in the sequence."""
        return len(self.geometry)

    def to(self, device: torch.device) -> "ImageCapture":
        """Return the capture on a device: itself where it is there, else a copy."""
        if self.geometry.tile.device == device:
            return self
        maps = ("vision_attention", "vision_map", "patch_entropy", "question")
        moved = {name: brought(getattr(self, name), device) for name in maps}
        return replace(self, geometry=self.geometry.to(device), **moved)


@dataclass
class VisionCapture:
    """What one call of the image encoder yielded, plus decisions to replay.

    Attributes:
        images: The distinct images, in order.
        prompt: ``input_ids`` of the first forward that used the capture.
        decisions: ``(stage, row, image) -> alive`` of that forward: with ``use_cache=False`` every
            decoding step repeats the prefill and must keep the same tokens.
        joined: Whether ``images`` are whole pictures, where the encoder got views.
        needs: What it was taken for: all that the scorers of its config ask for.
    """

    images: list[ImageCapture]
    prompt: Tensor | None = None
    joined: bool = False
    decisions: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def repeats(self, input_ids: Tensor) -> bool:
        """Tell whether ``input_ids`` go on where the prompt ended; if not, they are the prompt."""
        first = self.prompt
        if first is not None:
            fits = first.shape[0] == input_ids.shape[0] and first.shape[1] < input_ids.shape[1]
            if fits and torch.equal(first, input_ids[:, : first.shape[1]]):
                return True
            self.decisions.clear()
        self.prompt = input_ids.clone()
        return False


class VisionTap:
    """Taps the vision tower's attention inputs while a config is applied.

    Only the hidden states entering one attention module are kept; the row is computed from that
    module's own q and k projections, so the encoder stays on SDPA or FlashAttention and no N x N
    weights of all layers exist (FasterVLM, docs/methods.md).
    """

    def __init__(self, family: Family, needs: frozenset[str]) -> None:
        self._family = family
        self._needs = needs
        self._local = threading.local()

    def install(self) -> list[Any]:
        """Hook the tower where a scorer asks for it and return the hook handles."""
        modules = self._family.vision_attention_modules()
        asked = self._needs & {"vision_attention", "vision_map"}
        if asked and not modules:
            raise refuse(self._family.model, "the attention of its vision tower cannot be read")
        if self._needs & TOWER_NEEDS - self._family.tower_tells():
            raise refuse(
                self._family.model,
                "its tokens take patches of several views, between which no attention is known; "
                "leave context_entropy out",
            )
        if not asked:
            return []
        return [m.register_forward_pre_hook(self._remember, with_kwargs=True) for m in modules]

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        self._local.tapped = TappedAttention(module, states, kwargs)

    def take(self, seen: TappedAttention) -> None:
        """Take what an attention module was given where no hook of this tap sees it."""
        self._local.tapped = seen

    @contextmanager
    def encoding(self) -> Iterator[bool]:
        """Tell whether no other encoder call is under way on this thread."""
        inner = getattr(self._local, "encoding", False)
        self._local.encoding = True
        try:
            yield not inner
        finally:
            self._local.encoding = inner

    def features(self, output: Any) -> Any:
        """Return what stands in the sequence, image by image, from what an encoder returned."""
        return self._family.features(output)

    @never_compiled
    @exactly()
    def capture(
        self, arguments: Mapping[str, Any], features: Any, modality: str = "image"
    ) -> VisionCapture:
        """Collect what the scorers need of the images of one encoder call.

        Args:
            arguments: The call's, by name.
            features: What it returned.
            modality: What was encoded, ``image`` or ``video``.
        """
        call = VisionCall(arguments, self._family.lengths(arguments, features, modality), modality)
        device = features[0].device
        images = [ImageCapture(g.to(device)) for g in self._family.geometries(call)]
        self._add_attention(images, call)
        if self._family.joins_views or self._needs & {"image_seed", "patch_entropy"}:
            for image, pixels in zip(images, self._family.pixels(call), strict=True):
                self._add_pixels(image, pixels)
        return VisionCapture(images, needs=self._needs)

    def _add_attention(self, images: list[ImageCapture], call: VisionCall) -> None:
        tapped: TappedAttention | None = getattr(self._local, "tapped", None)
        if tapped is None:
            return
        del self._local.tapped
        family, maps = self._family, "vision_map" in self._needs
        cls, group = family.vision_has_cls(), family.patches_per_token
        pool, taken = family.pooling(call), family.taken(call)
        heads = family.vision_heads(tapped, call, first_only=cls and not maps)
        for number, (image, (query, key)) in enumerate(zip(images, heads, strict=True)):
            if taken is not None:
                row = attention_row(query, key, cls=cls).flatten()
                image.vision_attention = _gathered(row, taken[number].to(row.device))
            elif "vision_attention" in self._needs:
                row = _pooled(attention_row(query, key, cls=cls, group=group)[:, None], pool)[:, 0]
                image.vision_attention = _per_token(image.geometry, row)
            if maps:
                full = attention_map(query, key, cls=cls, group=group)
                image.vision_map = full if pool is None else pool.to(full) @ _pooled(full, pool)

    def _add_pixels(self, image: ImageCapture, pixels: Tensor) -> None:
        if "image_seed" in self._needs:
            first = pixels[0].float().cpu().contiguous()
            image.seed = zlib.crc32(first.numpy().tobytes())
        if "patch_entropy" in self._needs:
            rows, cols = int(image.geometry.tile_rows[0]), int(image.geometry.tile_cols[0])
            statistics = self._family.pixel_statistics()
            image.patch_entropy = patch_entropy(pixels, rows, cols, *statistics)
        if self._family.joins_views:
            grey = pixels[0].float().mean(0)
            image.sketch = torch.nn.functional.adaptive_avg_pool2d(grey[None], SKETCH)[0]


def _per_token(geometry: ImageGeometry, row: Tensor) -> Tensor:
    value = row.to(geometry.tile.device)[geometry.tile, geometry.inside]
    return value.masked_fill(geometry.separator, 0.0)


def _gathered(row: Tensor, taken: Tensor) -> Tensor:
    """Return the sum of what each token's patches receive, ``[tokens]``."""
    received: Tensor = row[taken.clamp_min(0)].masked_fill(taken < 0, 0.0).sum(1)
    return received


def _pooled(received: Tensor, pool: Tensor | None) -> Tensor:
    """Return what tokens receive (``[..., tokens]``) from what patches do; sums stay the same."""
    if pool is None:
        return received
    return received @ pool.to(received).T * (pool.shape[1] / pool.shape[0])


@exactly()
def patch_entropy(
    pixels: Tensor, rows: int, cols: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return the entropy of each patch's grey values: 256 bins, grey is the RGB mean, in bits.

    VFlowOpt, arXiv 2508.05211; its release takes normalised pixels, where negatives wrap around
    (VFlowOpt, docs/methods.md): here the normalising is undone first.

    Args:
        pixels: ``[views, 3, height, width]`` as the tower got them.
        rows: Patches down a view.
        cols: Patches across a view.
        mean: Per channel, what was subtracted.
        std: Per channel, what was divided by.

    Returns:
        ``[views, rows * cols]`` float32.
    """
    device = pixels.device
    shape = (1, -1, 1, 1)
    raw = pixels.float() * torch.tensor(std, dtype=torch.float32, device=device).view(shape)
    raw = raw + torch.tensor(mean, dtype=torch.float32, device=device).view(shape)
    grey = (raw.clamp(0, 1).mean(1) * 255).round().long()
    views, height, width = grey.shape
    ph, pw = height // rows, width // cols
    grey = grey[:, : ph * rows, : pw * cols].reshape(views, rows, ph, cols, pw)
    grey = grey.transpose(2, 3).reshape(views, rows * cols, ph * pw)
    # Whole numbers: adding up floats in any order is refused by deterministic mode on CUDA.
    patch = torch.arange(views * rows * cols, device=device).view(views, -1, 1)
    counts = torch.bincount((patch * 256 + grey).flatten(), minlength=256 * patch.numel())
    share = counts.view(views, -1, 256).float() / (ph * pw)
    return -(share * share.clamp_min(1e-12).log2()).sum(-1)


def wrap_encoder(
    encode: Any,
    tap: VisionTap,
    note: Callable[[VisionCapture, Any], None],
    modality: str = "image",
) -> Any:
    """Return ``encode`` (a model's ``get_image_features``), noting a capture of every call.

    Args:
        encode: The bound method.
        tap: Its attention tap, installed.
        note: Called with the capture and the encoder's output.
        modality: What it encodes, ``image`` or ``video``.
    """
    signature = inspect.signature(encode)

    # Without the wrapped signature, generate passes pixels and features both.
    @functools.wraps(encode)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with tap.encoding() as outermost:
            output = encode(*args, **kwargs)
        if not outermost:
            # Qwen3-VL's video encoder calls its image encoder: what counts is that of videos.
            return output
        features = tap.features(output)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        note(tap.capture(bound.arguments, features, modality), output)
        return output

    return wrapper
