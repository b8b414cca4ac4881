"""Bicubic resampling with antialiasing, as the processors' two backends do it."""

from typing import Any

import numpy as np
import torch
from PIL import Image


def resample(image: Any, size: tuple[int, int]) -> Any:
    """Return a picture, or a video's frames, at another size.

    Pillow for the arrays of Pillow's backend and torch for the tensors of torchvision's: what the
    processor itself would have used, whose bicubic filters are antialiased.

    Args:
        image: ``[..., C, H, W]``, an array or a tensor of 8-bit or float pixels.
        size: Height and width.

    Returns:
        ``[..., C, *size]`` of the same kind.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if isinstance(image, torch.Tensor):
        return _torch(image, size)
    if image.dtype == np.uint8 and image.ndim == 3:
        bands = [
            np.asarray(Image.fromarray(band).resize(size[::-1], Image.Resampling.BICUBIC))
            for band in np.ascontiguousarray(image)
        ]
        return np.stack(bands)
    found: Any = _torch(torch.from_numpy(np.ascontiguousarray(image)), size).numpy()
    return found


def _torch(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    flat = image.reshape(-1, *image.shape[-3:])
    # Bytes as bytes where torch can: with torchvision's very roundings.
    whole = image.dtype == torch.uint8 and image.device.type == "cpu"
    made = torch.nn.functional.interpolate(
        flat if whole else flat.float(),
        size=size,
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    if not (whole or image.is_floating_point()):
        made = made.round().clamp(0, 255)
    return made.to(image.dtype).reshape(*image.shape[:-2], *size)
