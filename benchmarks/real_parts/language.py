"""The language model: SmolLM2's weights out of a GGUF file, as transformers' Llama."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def read_language(file: Path) -> tuple[LlamaForCausalLM, Any]:
    """The model in fp32, and its tokenizer."""
    where = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # A plain Llama: what transformers keeps of the file's format would forbid saving.
    left_out = ("quantization_config", "_model_name_or_path", "dtype")
    fields = {k: v for k, v in read.config.to_dict().items() if k not in left_out}
    model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model, tokenizer


def name_of(tensor: str) -> str:
    """The module of one of the file's tensors: "blk.7.ffn_down.weight" and its like."""
    parts = tensor.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}"
    return OUTER[parts[0]]


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Queries and keys in transformers' order: the file interleaves the halves that rotate."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, -1)


def difference(file: Path, model: LlamaForCausalLM) -> tuple[float, int]:
    """Largest difference to gguf's own reading of the file, and how many tensors were compared."""
    from gguf import GGUFReader, dequantize

    config, worst, tensors = model.config, 0.0, GGUFReader(str(file)).tensors
    for tensor in tensors:
        theirs = dequantize(tensor.data, tensor.tensor_type)
        if "attn_q." in tensor.name:
            theirs = turned(theirs, config.num_attention_heads)
        elif "attn_k." in tensor.name:
            theirs = turned(theirs, config.num_key_value_heads)
        ours = model.get_submodule(name_of(tensor.name)).weight.detach().numpy()
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst, len(tensors)
