"""Pictures of a calibration set: read when asked for, always RGB, identified by their pixels."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import overload

from PIL import Image, ImageOps

from prunetune.errors import DataError
from prunetune.models.tensors import POINTER

# Data formats only: Pillow would otherwise also try EPS, which starts Ghostscript on the file.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jif",
        ".mpo",
        ".png",
        ".webp",
        ".avif",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        # Not of Pillow's own: they are decoded, or refused by name.
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
    }
)


_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@dataclass(frozen=True)
class Source:
    """Where the encoded bytes of one picture come from, not read yet.

    Args:
        name: What messages call it, e.g. the path of the file.
        read: Returns the encoded bytes; raises ``OSError`` or ``DataError`` where it cannot.
    """

    name: str
    read: Callable[[], bytes] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Picture:
    """One picture that was decoded once, so is known to be whole; equal pixels make it equal."""

    sha256: str
    source: Source = field(compare=False)

    @classmethod
    def check(cls, source: Source) -> "Picture":
        """Decode the source once and remember the digest of its pixels.

        Raises:
            DataError: It cannot be read, is no picture, is truncated, or is too large.
        """
        return cls(pixel_digest(decode(source)), source)

    def load(self) -> Image.Image:
        """Return the picture as RGB, decoded anew."""
        return decode(self.source)


@dataclass(frozen=True)
class Pictures(Sequence[Image.Image]):
    """The pictures of a sample: a tuple of RGB images that holds none of them in memory."""

    pictures: tuple[Picture, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Image.Image]:
        return (picture.load() for picture in self.pictures)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...

    def __getitem__(self, index: int | slice) -> "Image.Image | Pictures":
        if isinstance(index, slice):
            return Pictures(self.pictures[index])
        return self.pictures[index].load()


def pixel_digest(image: Image.Image) -> str:
    """Return the sha256 of an image's size and RGB pixels, whatever file they came from."""
    rgb = to_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def decode(source: Source) -> Image.Image:
    """Read and decode a picture as RGB, upright.

    Raises:
        DataError: It cannot be read, is no picture, is truncated, or is too large.
    """
    try:
        data = source.read()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"picture {source.name}: cannot be read ({reason}); restore it") from error
    try:
        return _decode(data)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"picture {source.name}: too large, Pillow allows {Image.MAX_IMAGE_PIXELS} pixels; "
            f"make it smaller or remove it"
        ) from error
    except Image.UnidentifiedImageError as error:
        if data.startswith(POINTER):
            raise DataError(
                f"picture {source.name}: a pointer of git-lfs, not the picture; run git lfs pull "
                "there, or download the files"
            ) from error
        if (needed := _needed(data)) is not None:
            raise DataError(
                f"picture {source.name}: {needed[0]}, which Pillow reads with the package "
                f"{needed[1]}; run: pip install {needed[1]}, convert it to JPEG or PNG, or skip "
                f"bad pictures with --skip-bad"
            ) from error
        raise DataError(
            f"picture {source.name}: {len(data)} bytes that are no picture of a known format "
            f"({', '.join(FORMATS)}); replace it, or skip bad pictures with --skip-bad"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(
            f"picture {source.name}: truncated or damaged ({' '.join(str(error).split())}); "
            f"replace it, or skip bad pictures with --skip-bad"
        ) from error


def _decode(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        if (needed := _needed(data)) is not None:
            _register(needed[2])
        formats = [name for name in (*FORMATS, "HEIF", "JXL") if name in Image.OPEN]
        with Image.open(io.BytesIO(data), formats=formats) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))


def _needed(data: bytes) -> tuple[str, str, str] | None:
    """Return format, package and module of a picture that takes one; None for all others."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        return "HEIC", "pillow-heif", "pillow_heif"
    if data.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "JPEG XL", "pillow-jxl-plugin", "pillow_jxl"
    return None


def _register(module: str) -> None:
    try:
        found = import_module(module)
    except ImportError:
        return
    if hasattr(found, "register_heif_opener"):
        found.register_heif_opener()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit RGB: transparency over white, 16 bits scaled instead of clipped."""
    if image.mode == "RGB":
        return image.copy() if image.readonly else image
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = image.convert("I").point(lambda value: value * (1 / 257))
        return wide.convert("L").convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
