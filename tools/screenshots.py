"""Copies the pictures that docs/ names from build/screenshots into docs/images, made small.

The browser tests write them; a picture that no page of docs/ names is not copied.
"""

import re
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
MADE, KEPT = ROOT / "build" / "screenshots", ROOT / "docs" / "images"
_WIDEST, _COLOURS = 1100, 256


def named() -> list[str]:
    """Return the names of the pictures that pages of docs/ show."""
    text = "".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    return sorted(set(re.findall(r"\(images/([\w.-]+\.png)\)", text)))


def main() -> int:
    """Copy them; return 1 if one is missing."""
    KEPT.mkdir(exist_ok=True)
    missing = [name for name in named() if not (MADE / name).exists()]
    for name in named():
        if name in missing:
            continue
        with Image.open(MADE / name) as picture:
            small = picture.convert("RGB")
        small.thumbnail((_WIDEST, 10 * _WIDEST), Image.Resampling.LANCZOS)
        # A palette is a third of the size; the rare colours are what figures are about.
        small = small.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(KEPT / name, optimize=True)
        print(f"{name}: {(KEPT / name).stat().st_size / 1024:.0f} KiB")
    for name in missing:
        print(f"{name}: not in {MADE}; run the browser tests first", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
