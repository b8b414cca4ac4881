"""Photographed objects without background, by class, and photographs to lay them on.

From Debian's `tuxpaint-stamps-default` (GPL-2) and `opencv-doc`, unpacked and not installed, and
scikit-image's own photographs. One object in four of each class and one background in four are held
out: training never sees them. Nothing of this is committed.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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

Found = TypeVar("Found")


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


def part(found: Sequence[Found], side: str) -> list[Found]:
    """The side's share of what there is, in its order: every fourth is held out."""
    return [one for index, one in enumerate(found) if (index % 4 == 1) == (side == "held_out")]


def read_sources(root: Path, side: str) -> Sources:
    """The objects and backgrounds of a side: "train" or "held_out".

    Raises:
        SystemExit: The folder has no stamps.
    """
    objects = {}
    for name, folders in CLASSES.items():
        files = [f for folder in folders for f in sorted((root / STAMPS / folder).rglob("*.png"))]
        photographed = [file for file in files if "cartoon" not in str(file)]
        objects[name] = [cut_out(file) for file in part(photographed, side)]
    if not any(objects.values()):
        raise SystemExit(f"{root}: no picture in {STAMPS}; give the folder of unpacked packages")
    scenes = [file for name in SCENES if (file := root / PHOTOGRAPHS / name).is_file()]
    backgrounds = [Image.open(file).convert("RGB") for file in part(scenes, side)]
    return Sources(objects, backgrounds + part(others(), side))


def cut_out(file: Path) -> Image.Image:
    """An object without its transparent border, at most 256 pixels long."""
    with Image.open(file) as image:
        whole = image.convert("RGBA")
    whole = whole.crop(whole.getbbox())
    whole.thumbnail((256, 256))
    return whole


def others() -> list[Image.Image]:
    """scikit-image's photographs, those that its installation carries."""
    from skimage import data

    found = []
    for name in OTHER_SCENES:
        try:
            found.append(Image.fromarray(getattr(data, name)()).convert("RGB"))
        except (OSError, ModuleNotFoundError, ValueError):  # it would have to be downloaded
            continue
    return found
