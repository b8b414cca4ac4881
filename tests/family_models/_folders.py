"""Folders of tiny models with their processors, as they come from the hub; built offline."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from family_models._qwen import MERGE, PATCH

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with Qwen's markers."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=SPECIAL[0], eos_token=SPECIAL[2], padding_side="left"
    )


def save_qwen(family: Any, folder: Path) -> Path:
    """Save a tiny Qwen-VL with tokenizer, picture processor and chat template to ``folder``."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    text = tokenizer()
    model = family.model(vocab_size=len(text))
    for name, token in zip(
        ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
        SPECIAL[3:],
        strict=True,
    ):
        setattr(model.config, name, text.convert_tokens_to_ids(token))
    model.generation_config.suppress_tokens = text.convert_tokens_to_ids(list(SPECIAL))
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2,
        size={"shortest_edge": 1024, "longest_edge": 1600},
    ).save_pretrained(folder)  # fmt: skip
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder
