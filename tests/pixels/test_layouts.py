"""Sizes by layout against the processors of the families that have them, token by token."""

import math
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers.models.glm4v import image_processing_pil_glm4v as glm
from transformers.models.ovis2 import image_processing_pil_ovis2 as ovis
from transformers.models.paddleocr_vl import image_processing_pil_paddleocr_vl as paddle
from transformers.models.pixtral import image_processing_pil_pixtral as pixtral

from prunetune.families import FAMILIES as FAMILY_TABLE
from prunetune.pixels import MaxPixels, Share
from prunetune.pixels.layouts import LAYOUTS
from prunetune.pixels.native import native_settings
from prunetune.pixels.processors import at_level

UNIT = 28
SIZES = [
    (300, 500),
    (1200, 800),
    (97, 1000),
    (56, 56),
    (20, 300),
    (640, 33),
    (900, 900),
    (5, 4),
    (9, 950),
]
LEVELS = [Share(share=0.5), Share(share=0.07), MaxPixels(max_pixels=50_000)]
GLM = {"size": {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 400_000}}
THIN = {"size": {name: edge // 2 for name, edge in GLM["size"].items()}}
EDGE = {"size": {"longest_edge": 728}}


def glm_tokens(part, image):
    return int(part(image, return_tensors="pt")["image_grid_thw"].prod()) // 4


def glm_formula(size, high=GLM["size"]["longest_edge"]):
    """As the processor's own function says, over the two moments of a picture."""
    low = GLM["size"]["shortest_edge"]
    return math.prod(glm.smart_resize(2, *size, 2, UNIT, low, high)) // UNIT**2


def thin_formula(size, high=GLM["size"]["longest_edge"]):
    """As the processor's own function says."""
    low, high = GLM["size"]["shortest_edge"] // 2, high // 2
    return math.prod(paddle.smart_resize(*size, UNIT, low, high)) // UNIT**2


def edge_tokens(part, image):
    # PixtralProcessor passes the side of a token, not of a patch.
    done = part(image, return_tensors="pt", patch_size=UNIT)
    return math.prod(n // UNIT for n in done["image_sizes"][0].tolist())


def edge_formula(size):
    over = max(1.0, max(size) / EDGE["size"]["longest_edge"])
    return math.prod(math.ceil(math.floor(side / over) / UNIT) for side in size)


FAMILIES = {
    "glm4v": (glm.Glm4vImageProcessorPil(**GLM), glm_tokens, glm_formula),
    "paddleocr_vl": (paddle.PaddleOCRVLImageProcessorPil(**THIN), glm_tokens, thin_formula),
    "mistral3": (pixtral.PixtralImageProcessorPil(**EDGE), edge_tokens, edge_formula),
}


@pytest.mark.parametrize("level", LEVELS, ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_pictures_of_any_size(family, level):
    """A smaller picture is what the processor takes as it is, and within its share."""
    own, tokens, formula = FAMILIES[family]
    small = at_level(SimpleNamespace(image_processor=own), level, family).image_processor
    layout, edge = LAYOUTS[FAMILY_TABLE.get(family).resizing], family == "mistral3"
    fewer = 0
    for size in SIZES:
        image = Image.new("RGB", size[::-1], "red")
        full, made = tokens(own, image), tokens(small, image)
        assert full == formula(size)
        given = {"patch_size": UNIT, "merge_size": 1, "temporal_patch_size": 2, **own.to_dict()}
        given |= {"patch_size": UNIT} if edge else {"patch_size": 14, "merge_size": 2}
        if not edge and isinstance(level, MaxPixels):
            assert made == formula(size, 2 * level.max_pixels), "a cap is its own max_pixels"
        found = layout.smaller(size, given, level)
        assert made == formula(found)
        fewer += made < full
        if found == size:
            assert made == full
            continue
        assert made == math.prod(found) // UNIT**2, "the processor resamples it once more"
        assert made < full
        # One unit across, where pictures are thin; and a processor's own least size.
        least = max(*found) // UNIT, 1 if edge else 4
        assert made >= level.cap(full * UNIT**2) / UNIT**2 / 2 - 1, "too small"
        assert made <= max(level.cap(full * UNIT**2) / UNIT**2, *least)
    assert fewer >= 3


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_tiles_that_cover_a_picture(share):
    """Ovis 2: the tiles of a smaller picture, by the processor's own count, and a thumbnail."""
    own = ovis.Ovis2ImageProcessorPil(
        size={"height": 48, "width": 48}, crop_to_patches=True, max_patches=9
    )
    pictures = SimpleNamespace(image_processor=own)
    small = at_level(pictures, Share(share=share), "ovis2").image_processor
    for size in ((144, 144), (100, 200), (60, 60), (400, 90), (40, 30)):
        image = Image.new("RGB", size[::-1], "red")
        full, made = (
            len(part(image, return_tensors="pt")["pixel_values"]) for part in (own, small)
        )
        tiles = max(1, full - 1)
        allowed = max(1, math.floor(share * tiles + 1e-9))
        assert made == allowed + (allowed > 1) or tiles > made - (made > 1) > 0
        assert made - (made > 1) <= allowed
    assert len(small(image, return_tensors="pt", crop_to_patches=False)["pixel_values"]) == 1


def test_the_engines_own_setting_for_tiles_that_cover():
    own = ovis.Ovis2ImageProcessorPil(size={"height": 48, "width": 48}, crop_to_patches=True)
    pictures, sizes = SimpleNamespace(image_processor=own), [(144, 144), (100, 200)]

    def count(processor):
        part, blank = processor.image_processor, [Image.new("RGB", size[::-1]) for size in sizes]
        return len(part(blank, return_tensors="pt")["pixel_values"])

    level = Share(share=0.4)
    wanted = count(at_level(pictures, level, "ovis2"))
    hf, vllm = native_settings(pictures, level, "ovis2", sizes, count, wanted)
    assert hf.text.startswith("processor(..., max_patches=")
    assert "max_patches" in vllm.text
    said = int(hf.text.rpartition("=")[2].rstrip(")"))
    own.max_patches = said
    assert count(pictures) == pytest.approx(wanted, rel=0.25)
