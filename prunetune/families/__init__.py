"""Model families: one transformers ``model_type`` each.

A new family is one file in this folder and one line in the table below.
"""

from prunetune.families.base import Family, VisionCall
from prunetune.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "family",
    "prunetune.families.base:Family",
    {
        "gemma3": "prunetune.families.gemma3:Gemma3",
        "gemma4": "prunetune.families.gemma4:Gemma4",
        "glm46v": "prunetune.families.glm46v:Glm46V",
        "glm4v": "prunetune.families.glm4v:Glm4v",
        "granite4_vision": "prunetune.families.granite4_vision:Granite4Vision",
        "idefics3": "prunetune.families.idefics3:Idefics3",
        "internvl": "prunetune.families.internvl:InternVL",
        "kimi_k25": "prunetune.families.kimi_k25:KimiK25",
        "lfm2_vl": "prunetune.families.lfm2_vl:Lfm2Vl",
        "llama4": "prunetune.families.llama4:Llama4",
        "llava": "prunetune.families.llava:Llava",
        "llava_next": "prunetune.families.llava_next:LlavaNext",
        "llava_next_video": "prunetune.families.llava_next_video:LlavaNextVideo",
        "llava_onevision": "prunetune.families.llava_onevision:LlavaOnevision",
        "minicpmv4_6": "prunetune.families.minicpmv4_6:MiniCPMV46",
        "mistral3": "prunetune.families.mistral3:Mistral3",
        "molmo2": "prunetune.families.molmo2:Molmo2",
        "ovis2": "prunetune.families.ovis2:Ovis2",
        "paddleocr_vl": "prunetune.families.paddleocr_vl:PaddleOCRVL",
        "paligemma": "prunetune.families.paligemma:PaliGemma",
        "qwen2_5_vl": "prunetune.families.qwen2_5_vl:Qwen25VL",
        "qwen2_vl": "prunetune.families.qwen2_vl:Qwen2VL",
        "qwen3_5": "prunetune.families.qwen3_5:Qwen35",
        "qwen3_5_moe": "prunetune.families.qwen3_5_moe:Qwen35Moe",
        "qwen3_vl": "prunetune.families.qwen3_vl:Qwen3VL",
        "qwen3_vl_moe": "prunetune.families.qwen3_vl_moe:Qwen3VLMoe",
        "smolvlm": "prunetune.families.smolvlm:SmolVLM",
        "video_llava": "prunetune.families.video_llava:VideoLlava",
    },
)

__all__ = ["FAMILIES", "Family", "VisionCall"]
