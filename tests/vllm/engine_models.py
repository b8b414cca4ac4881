"""Tiny random models as folders that both engines load: heads of 32, the least of vLLM on CPUs."""

import json

from family_models import _folders_llava as llava
from family_models import family
from family_models._folders import save_qwen
from family_models._view_folders import save_views

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
LIMIT = {"vision_aspect_ratio": "anyres_max_9"}
"""The only one that vLLM counts tokens by."""
# Tables of other tests stay as they are: all run in one process.
KINDS = llava.KINDS | {
    "llava": (
        "clip.image_processing_pil_clip:CLIPImageProcessorPil",
        llava.CLIP | {"processor_class": "LlavaProcessor"},
    ),
    "llava_onevision": (
        llava.KINDS["llava_onevision"][0],
        llava.KINDS["llava_onevision"][1] | LIMIT,
    ),
}
MROPE = {"qwen2_vl": [4, 6, 6], "qwen2_5_vl": [4, 6, 6], "qwen3_vl": [6, 5, 5]}


class WiderHeads:
    """A family whose text model has heads of 32."""

    def __init__(self, name):
        self._own = family(name)
        self.model_type = name

    def model(self, **text):
        own, name = self._own, self.model_type
        if name not in MROPE:
            made = own.model(**HEADS, **text)
            if name == "llava_onevision":
                made.config.update(LIMIT)
            return made
        before = type(own).mrope
        type(own).mrope = MROPE[name]
        try:
            head = {"head_dim": 32} if name == "qwen3_vl" else {}
            made = own.model(**HEADS, **head, **text)
        finally:
            type(own).mrope = before
        if name == "qwen3_vl":
            made.config.text_config.rope_parameters["mrope_interleaved"] = True
        return made


def saved(name, folder):
    """Save a family's tiny model with its processor, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = WiderHeads(name)
    if name in MROPE:
        save_qwen(made, folder)
        from transformers import Qwen2VLVideoProcessor

        sizes = {"shortest_edge": 1024, "longest_edge": 4096}
        Qwen2VLVideoProcessor(
            patch_size=4, merge_size=2, temporal_patch_size=2, size=sizes
        ).save_pretrained(folder)
        return folder
    if name in ("internvl", "idefics3", "smolvlm"):
        return save_views(made, folder)
    return llava.save(name, folder, made, KINDS[name])


def suppressed(folder):
    """Return the tokens that the model shall not generate."""
    config = json.loads((folder / "generation_config.json").read_text("utf-8"))
    return config.get("suppress_tokens") or []
