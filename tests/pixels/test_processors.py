"""Smaller pictures: sizes by family, what a processor's own path makes of files, on and off."""

import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli_runner import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reference_models import make_config, tiny

import prunetune
from prunetune import PruningConfig
from prunetune.calibration import Sample, encode
from prunetune.errors import ConfigError
from prunetune.models import load_model
from prunetune.pixels import MaxPixels, Share
from prunetune.pixels.layouts import LAYOUTS
from prunetune.pixels.native import native_settings
from prunetune.pixels.processors import at_level, level_of

NATIVE = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 10**6}}
SIZES = st.integers(30, 2000)


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


def resizing(pixels, model_type="llava_next", stages=()):
    ref = {"model_type": model_type, "num_layers": 16}
    data = {"format": "prunetune.config", "version": 2, "model": ref, "pixels": pixels}
    return PruningConfig.parse({**data, "stages": list(stages)})


def seen(processor, image):
    return encode(processor, [Sample((image,), "what ?")])


# -- sizes -------------------------------------------------------------------------------------


@given(SIZES, SIZES, st.floats(0.02, 1.0))
def test_native_pictures_never_have_more_than_their_share(height, width, share):
    layout = LAYOUTS["native"]
    full = layout.smaller((height, width), NATIVE, MaxPixels(max_pixels=10**6))
    small = layout.smaller((height, width), NATIVE, Share(share=share))
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    used = smart_resize(*full, 28, 3136, 10**6)
    made = smart_resize(*small, 28, 3136, 10**6)
    if math.prod(28 * round(side / 28) for side in (height, width)) < 3136:
        assert small == (height, width), "the processor enlarges it: smaller would be worse"
    else:
        least = max(2.25 * 3136, 28 * max(used))  # One unit across, where pictures are thin.
        assert math.prod(made) <= max(share * math.prod(used), least) + 1e-6
    if small != (height, width):
        assert small == made, "the processor resamples it once more"


def test_a_cap_is_the_processors_own_max_pixels():
    """On Qwen-VL a level says what max_pixels says: from what a cap leaves, not from the file."""
    layout, size = LAYOUTS["native"], (1400, 2800)
    half = layout.smaller(size, NATIVE, Share(share=0.5))
    assert math.prod(half) <= 0.5e6
    assert half == layout.smaller(size, NATIVE, MaxPixels(max_pixels=math.prod((700, 1400)) // 2))


@pytest.mark.parametrize(
    ("layout", "given", "size", "share", "made"),
    [
        # 12 tiles of 3 x 4: a quarter are 3 in one row or a single one, nearest in shape.
        ("canvas", {"crop_to_patches": True, "min_patches": 1, "max_patches": 12,
                    "size": {"height": 448, "width": 448}}, (1344, 1792), 0.25, (448, 448)),
        ("canvas", {"crop_to_patches": False, "max_patches": 12}, (1344, 1792), 0.25, (1344, 1792)),
        # The longest edge is 1456 whatever the file has; at least one tile.
        ("longest_edge", {"size": {"longest_edge": 1456}, "do_image_splitting": True,
                          "max_image_size": {"longest_edge": 364}}, (400, 800), 0.25, (364, 728)),
        ("longest_edge", {"size": {"longest_edge": 1456}, "do_image_splitting": True,
                          "max_image_size": {"longest_edge": 364}}, (400, 800), 0.01, (182, 364)),
        # 672 x 672 tiles hold 672 x 336 of it: half of both sides.
        ("tiles", {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]]},
         (2000, 1000), 0.25, (336, 168)),
        ("tiles", {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]]},
         (100, 50), 0.9, (100, 50)),
    ],
)  # fmt: skip
def test_sizes_by_layout(layout, given, size, share, made):
    assert LAYOUTS[layout].smaller(size, given, Share(share=share)) == made


def test_frames_of_a_video_become_smaller():
    """By the processor's word on what it makes of them, whatever its limits are over."""

    class Films:
        patch_size, merge_size, temporal_patch_size = 14, 2, 2
        model_input_names = ("pixel_values_videos",)

        def get_num_of_video_patches(self, frames, height, width, given):
            # Of Qwen3-VL: limits are over all frames.
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

            low, high = 4 * 56 * 56 // frames, 4 * 280 * 280 // frames
            return (
                math.ceil(frames / 2) * math.prod(smart_resize(height, width, 28, low, high)) // 196
            )

        def _preprocess(self, videos, **given):
            return videos

    processor = SimpleNamespace(image_processor=Films(), video_processor=Films())
    small = at_level(processor, Share(share=0.25), "qwen3_vl").video_processor
    [video] = small._preprocess(videos=[torch.zeros(4, 3, 560, 560, dtype=torch.uint8)])
    assert video.shape == (4, 3, 140, 140)
    [least] = small._preprocess(videos=[torch.zeros(4, 3, 60, 60, dtype=torch.uint8)])
    assert least.shape == (4, 3, 60, 60), "below its minimum the processor would enlarge it"


# -- what the processor's own path makes of a file ---------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "L", "LA"])
def test_modes_are_what_the_processor_makes_of_them(loaded, mode):
    """Transparency, palettes and inks: as on the unresized path, then smaller."""
    image = picture(2, (128, 128)).convert("RGB")
    image.putalpha(Image.linear_gradient("L").resize((128, 128)))
    image = image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)
    own = loaded.processor.image_processor
    prepared = own.process_image(image, do_convert_rgb=True)
    plain = Image.fromarray(np.moveaxis(prepared, 0, -1))
    small = at_level(loaded.processor, Share(share=0.25), "llava_next")
    one, two = seen(small, image), seen(small, plain)
    assert one["image_sizes"].tolist() == [[64, 64]]
    assert torch.equal(one["pixel_values"], two["pixel_values"])


def test_a_rotated_file_is_turned_first(loaded, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = picture(3, (64, 128))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    small = at_level(loaded.processor, Share(share=0.2), "llava_next")
    turned = small(images=str(tmp_path / "turned.png"), text="<image>", return_tensors="pt")
    plain = small(images=upright, text="<image>", return_tensors="pt")
    assert turned["image_sizes"].tolist() == plain["image_sizes"].tolist() != [[64, 128]]
    assert torch.equal(turned["pixel_values"], plain["pixel_values"])


# -- on and off --------------------------------------------------------------------------------


def test_resized_leaves_the_processor_and_travels(loaded):
    config = resizing({"share": 0.25})
    small = pickle.loads(pickle.dumps(prunetune.resized(loaded.processor, config)))  # noqa: S301
    assert level_of(small) == Share(share=0.25)
    assert level_of(loaded.processor) is None
    image = picture(1, (128, 128))
    counts = [
        int((seen(p, image)["input_ids"] == loaded.model.config.image_token_id).sum())
        for p in (loaded.processor, small)
    ]
    assert counts == [336, 136]
    assert str(small.image_processor) == str(loaded.processor.image_processor)
    assert prunetune.resized(loaded.processor, resizing({"share": 1.0}, stages=STAGE)) is (
        loaded.processor
    )


STAGE = ({"layer": 2, "retention": 0.5, "scorers": [{"name": "coverage"}]},)


@torch.no_grad()
def test_apply_makes_the_processor_resize_until_it_is_removed(loaded):
    own, image = loaded.processor.image_processor, picture(1, (128, 128))
    with prunetune.apply(
        loaded.model, resizing({"share": 0.25}, stages=STAGE), processor=loaded.processor
    ) as handle:
        loaded.model.generate(**seen(loaded.processor, image), max_new_tokens=2)
        assert handle.trace[0].stages[0].before == [136]
        assert handle.trace[0].stages[0].after == [68]
        with pytest.raises(ConfigError, match="makes pictures smaller already"):
            prunetune.apply(
                tiny("llava_next"), resizing({"share": 0.5}).model_copy(
                    update={"model": make_config(tiny("llava_next")).model}
                ), processor=loaded.processor,
            )  # fmt: skip
    assert loaded.processor.image_processor is own
    # Nothing but smaller pictures: a config without stages.
    small = prunetune.resized(loaded.processor, resizing({"share": 0.25}))
    with prunetune.apply(loaded.model, resizing({"share": 0.25}), processor=small) as handle:
        loaded.model.generate(**seen(small, image), max_new_tokens=2)
    assert handle.trace[0].lengths == [[136]]
    assert handle.trace[0].stages == []


@pytest.mark.parametrize(
    ("processor", "said"),
    [(None, "pass the model's processor"), (SimpleNamespace(), "received SimpleNamespace")],
)
def test_apply_says_which_processor_it_needs(loaded, processor, said):
    with pytest.raises(ConfigError, match=said) as caught:
        prunetune.apply(loaded.model, resizing({"share": 0.5}), processor=processor)
    assert "\n" not in str(caught.value)
    # The twin: at a share of 1 nobody has to pass one.
    prunetune.apply(loaded.model, resizing({"share": 1.0}, stages=STAGE)).remove()


@pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3", "video_llava"])
def test_fixed_grids_are_refused_by_name(name):
    model = tiny(name)
    config = make_config(model, ((2, 0.5, ("coverage",)),))
    prunetune.apply(model, config).remove()
    data = {**config.model_dump(mode="json"), "version": 2, "pixels": {"share": 0.5}}
    with pytest.raises(ConfigError, match=f"{name} sees every picture on one fixed grid"):
        prunetune.apply(model, PruningConfig.parse(data), processor=SimpleNamespace())


# -- the engines' own settings -----------------------------------------------------------------


@pytest.mark.parametrize("level", [MaxPixels(max_pixels=501760), Share(share=0.4)], ids=repr)
def test_native_settings_of_qwen(level):
    """A cap is exact; of a share the nearest cap over the pictures, and it says so."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = SimpleNamespace(image_processor=Qwen2VLImageProcessorPil())
    sizes = [(600, 900), (1200, 800), (300, 500)]

    def count(processor):
        part, blank = processor.image_processor, [Image.new("RGB", size[::-1]) for size in sizes]
        return int(part(blank, return_tensors="pt")["image_grid_thw"].prod(1).sum()) // 4

    wanted = count(at_level(own, level, "qwen2_5_vl"))
    hf, vllm, llama = native_settings(own, level, "qwen2_5_vl", sizes, count, wanted)
    exact = isinstance(level, MaxPixels)
    assert (hf.exact, vllm.exact) == (exact, exact)
    kwargs = json.loads(vllm.text.removeprefix("--mm-processor-kwargs ").strip("'"))
    said = SimpleNamespace(image_processor=Qwen2VLImageProcessorPil(**kwargs))
    made = count(said)
    if exact:
        assert made == wanted
        assert vllm.note == ""
    else:
        assert f"{made} image tokens, the level has {wanted}" in vllm.note
        assert made == pytest.approx(wanted, rel=0.25)
    assert llama.text == f"--image-max-tokens {kwargs['max_pixels'] // 784}"
