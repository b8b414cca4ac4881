"""Stand-ins of the parts, to try the scripts: a small random model, painted objects and scenes."""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.real_parts.assemble import MARKERS, marked, save
from benchmarks.real_parts.cutouts import Sources

SIZE, PATCH = 56, 14


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, with the markers of a chat and of pictures."""
    words = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(words[:2])
    return marked(PreTrainedTokenizerFast(tokenizer_object=inner))


def write_model(folder: Path) -> None:
    """Writes a model folder as `assemble` does, of random weights."""
    torch.manual_seed(0)
    words = tokenizer()
    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=[SIZE, SIZE],
        patch_size=[PATCH, PATCH],
        layer_scale_init_value=1.0,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.convert_tokens_to_ids(MARKERS["context_image_token"]),
        image_seq_length=(SIZE // PATCH // 2) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = InternVLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.eos_token_id
    save(model, words, folder, SIZE)


def sources(side: str) -> Sources:
    """Two classes of painted objects on two noisy scenes; other ones for each side."""
    rng = np.random.default_rng([ord(letter) for letter in side])
    objects: dict[str, list[Image.Image]] = {}
    for name in ("disc", "box"):
        objects[name] = []
        for _ in range(2):
            image = Image.new("RGBA", (40, 40))
            draw = ImageDraw.Draw(image)
            color = tuple(int(c) for c in rng.integers(60, 255, 3))
            (draw.ellipse if name == "disc" else draw.rectangle)((2, 2, 37, 37), fill=color)
            objects[name].append(image)
    noise = [rng.integers(0, 255, (90, 90, 3)).astype(np.uint8) for _ in range(2)]
    return Sources(objects, [Image.fromarray(pixels) for pixels in noise])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    write_model(parser.parse_args().out)


if __name__ == "__main__":
    main()
