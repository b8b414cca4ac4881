"""Photographed objects without background, by class, and photographs to lay them on.

From Debian's `tuxpaint-stamps-default` (GPL-2) and `opencv-doc`, unpacked and not installed, and
scikit-image's own photographs. One object in four of each class and one background in four are held
out: training never sees them. Nothing of this is committed.
"""

import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PACKAGES = ("tuxpaint-stamps-default", "opencv-doc")
STAMPS = "usr/share/tuxpaint/stamps"
PHOTOGRAPHS = "usr/share/doc/opencv-doc/examples/data"
CLASSES = {
    "bird": ("animals/birds",),
    "insect": ("animals/insects",),
    "fish": ("animals/fish",),
    "mammal": ("animals/mammals",),
    "fruit": ("food/fruit",),
    "vegetable": ("food/vegetables",),
    "flower": ("plants/flowers",),
    "vehicle": ("vehicles",),
    "tool": ("household/tools",),
}
SCENES = (
    "aloeL.jpg", "baboon.jpg", "board.jpg", "building.jpg", "fruits.jpg", "graf1.png", "home.jpg",
    "leuvenA.jpg", "left01.jpg", "messi5.jpg", "stuff.jpg", "butterfly.jpg",
)  # fmt: skip
OTHER_SCENES = ("astronaut", "brick", "coffee", "gravel", "grass", "immunohistochemistry", "rocket")


@dataclass(frozen=True)
class Sources:
    """What a picture is made of: RGBA objects by class, RGB backgrounds."""

    objects: dict[str, list[Image.Image]]
    backgrounds: list[Image.Image]


def unpacked(folder: Path) -> Path:
    """The packages' files, fetched by apt where they are not there yet."""
    root, ready = folder / "files", folder / "files" / ".whole"
    if not ready.is_file():
        root.mkdir(parents=True, exist_ok=True)
        for name in PACKAGES:
            subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, check=True)
            [package] = folder.glob(f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
            package.unlink()
        ready.touch()
    return root


def held_out(name: str) -> bool:
    """Whether a file is one of the quarter that training never sees; by its name alone."""
    return zlib.crc32(name.encode()) % 4 == 0


def read_sources(root: Path, side: str) -> Sources:
    """The objects and backgrounds of a side: "train" or "held_out"."""
    unseen = side == "held_out"
    objects = {
        name: [
            cut_out(file)
            for folder in folders
            for file in sorted((root / STAMPS / folder).rglob("*.png"))
            if "cartoon" not in str(file) and held_out(file.name) == unseen
        ]
        for name, folders in CLASSES.items()
    }
    scenes = [root / PHOTOGRAPHS / name for name in SCENES]
    photographs = [
        Image.open(file).convert("RGB")
        for file in scenes
        if file.is_file() and held_out(file.name) == unseen
    ]
    return Sources(objects, photographs + [i for n, i in others() if held_out(n) == unseen])


def cut_out(file: Path) -> Image.Image:
    """An object without its transparent border, at most 256 pixels long."""
    with Image.open(file) as image:
        whole = image.convert("RGBA")
    whole = whole.crop(whole.getbbox())
    whole.thumbnail((256, 256))
    return whole


def others() -> list[tuple[str, Image.Image]]:
    """scikit-image's photographs, those that its installation carries."""
    from skimage import data

    found = []
    for name in OTHER_SCENES:
        try:
            found.append((name, Image.fromarray(getattr(data, name)()).convert("RGB")))
        except (OSError, ModuleNotFoundError, ValueError):  # it would have to be downloaded
            continue
    return found
