"""Folders of tiny models of fixed views with their processors, built offline."""

import importlib
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from family_models._base import TinyFamily

TEMPLATE = """{%% for m in messages %%}{{ m['role'] }}:
{%%- for c in m['content'] %%}{%% if c['type'] == 'image' %%}%s
{%%- else %%}{{ c['text'] }}{%% endif %%}{%% endfor %%}
{%% endfor %%}{%% if add_generation_prompt %%}assistant:{%% endif %%}"""
NAMED = {
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>",
        "context_image_token": "<IMG_CONTEXT>",
    },
    "ovis2": {
        "image_token": "<image>", "atom": "<IMG_ATOM>", "start": "<IMG_START>",
        "grid": "<IMG_GRID>", "col": "<IMG_COL>", "row": "<IMG_ROW>", "end": "<IMG_END>",
    },
    "gemma3": {"image_token": "<image_soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    "paligemma": {"image_token": "<image>"},
    "gemma4": {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
        "video_token": "<|video|>",
    },
    "idefics3": {},
    "smolvlm": {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"},
}  # fmt: skip
PICTURE = {
    "internvl": "<IMG_CONTEXT>", "gemma3": "<boi>", "gemma4": "<|image|>",
    "idefics3": "<image>", "smolvlm": "<image>",
    "ovis2": "<image>",
}  # fmt: skip


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with the family's markers; tile tags are text."""
    named = NAMED[name]
    special = ["<pad>", "<bos>", "<eos>", *named.values()]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(word, special=True) for word in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        padding_side="left", extra_special_tokens=named,
    )  # fmt: skip


def image_processor(name: str) -> Any:
    """Return the family's picture processor, at the size of the tiny tower."""
    if name in ("internvl", "ovis2"):
        return importlib.import_module(f"family_models.{name}").PROCESSOR
    if name == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        return Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    if name == "gemma4":
        from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

        return Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    if name == "paligemma":
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        made = SiglipImageProcessorPil(size={"height": 20, "width": 20})
        made.image_seq_length = 25
        return made
    from family_models import family

    return family(name).processor


def save_views(family: TinyFamily, folder: Path) -> Path:
    """Save a tiny model with tokenizer, picture processor and chat template to ``folder``."""
    name, text = family.model_type, tokenizer(family.model_type)
    settings: dict[str, Any] = {
        "internvl": {"image_seq_length": 9},
        "ovis2": {"image_seq_length": 9},
        "gemma3": {"image_seq_length": 16},
        "gemma4": {"image_seq_length": 70, "processor_class": "Gemma4Processor"},
    }.get(name, {} if name == "paligemma" else {"image_seq_len": 9})
    if name == "idefics3":
        # Its processor adds these itself.
        text.add_tokens(["<fake_token_around_image>", "<image>", "<end_of_utterance>"], True)
    marks = {
        "internvl": "<IMG_CONTEXT>", "gemma3": "<image_soft>", "gemma4": "<|image|>",
        "ovis2": "<IMG_ATOM>",
    }  # fmt: skip
    token = marks.get(name, "<image>")
    if name == "paligemma":
        from transformers import PaliGemmaProcessor

        processor = PaliGemmaProcessor(image_processor(name), text)
        text = processor.tokenizer
        processor.save_pretrained(folder)
    else:
        image_processor(name).save_pretrained(folder)
        if name == "gemma4":
            from transformers.models.gemma4.feature_extraction_gemma4 import (
                Gemma4AudioFeatureExtractor,
            )

            settings |= {
                "feature_extractor": json.loads(Gemma4AudioFeatureExtractor().to_json_string()),
                "image_processor": json.loads(image_processor(name).to_json_string()),
            }
        text.save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps(settings), "utf-8")
        (folder / "chat_template.jinja").write_text(TEMPLATE % PICTURE[name], "utf-8")
    sizes = {"vocab_size": len(text)}
    if name == "gemma4":
        # A window that is shorter than a picture.
        sizes |= {"vocab_size_per_layer_input": len(text), "sliding_window": 30}
    model = family.model(**sizes)
    model.config.image_token_id = text.convert_tokens_to_ids(token)
    if name == "ovis2":
        tags = text.convert_tokens_to_ids(list(NAMED[name].values())[2:])
        model.model.visual_indicator_token_ids = model.config.visual_indicator_token_ids = tags
    model.generation_config.suppress_tokens = text.all_special_ids
    model.save_pretrained(folder)
    return folder
