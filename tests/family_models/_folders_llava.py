"""Folders of tiny LLaVA models that take videos, with their processors; built offline."""

import importlib
import json
from pathlib import Path
from typing import Any

from family_models import family
from family_models._folders import tokenizer

MARKERS = ["<image>", "<video>"]
TEMPLATE = """{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>
{%- else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}
{%- if add_generation_prompt %} A:{% endif %}"""
CLIP = {
    "patch_size": 4,
    "num_additional_image_tokens": 1,
    "vision_feature_select_strategy": "default",
}
# The class of pictures that needs no torchvision, and the processor's own settings.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava_next": (
        "llava_next.image_processing_pil_llava_next:LlavaNextImageProcessorPil",
        CLIP | {"processor_class": "LlavaNextProcessor"},
    ),
    "llava_next_video": (
        "llava_next.image_processing_pil_llava_next:LlavaNextImageProcessorPil",
        CLIP | {"processor_class": "LlavaNextVideoProcessor"},
    ),
    "llava_onevision": (
        "llava_onevision.image_processing_pil_llava_onevision:LlavaOnevisionImageProcessorPil",
        {
            "num_image_tokens": 25, "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_2", "processor_class": "LlavaOnevisionProcessor",
        },
    ),
    "video_llava": (
        "video_llava.image_processing_video_llava:VideoLlavaImageProcessor",
        CLIP | {"processor_class": "VideoLlavaProcessor"},
    ),
}  # fmt: skip


def save(
    name: str,
    folder: Path,
    made: Any = None,
    kind: tuple[str, dict[str, Any]] | None = None,
) -> Path:
    """Save a tiny model with tokenizer, picture processor and chat template to ``folder``.

    Args:
        name: The family.
        folder: Where to.
        made: What builds the model; None: the tiny family itself.
        kind: As the values of ``KINDS``; None: the one of ``name``.
    """
    text = tokenizer()
    text.add_special_tokens({"additional_special_tokens": MARKERS})
    model = (made or family(name)).model(vocab_size=len(text))
    ids = text.convert_tokens_to_ids(MARKERS)
    model.config.image_token_id, model.config.video_token_id = ids
    model.generation_config.suppress_tokens = ids
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    where, settings = kind or KINDS[name]
    module, picture_class = where.split(":")
    side = model.config.vision_config.image_size
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    sizes: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": side}
    if name == "llava_onevision":
        sizes = {"size": {"height": side, "width": side}}
    if pinpoints:
        sizes["image_grid_pinpoints"] = pinpoints
    processor = getattr(importlib.import_module(f"transformers.models.{module}"), picture_class)
    processor(**sizes).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder
