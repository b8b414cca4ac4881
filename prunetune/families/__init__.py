"""Model families: one transformers ``model_type`` each.

A new family is one file in this folder and one line in the table below.
"""

from prunetune.families.base import Family, VisionCall
from prunetune.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "family",
    "prunetune.families.base:Family",
    {
        "llava": "prunetune.families.llava:Llava",
        "llava_next": "prunetune.families.llava_next:LlavaNext",
    },
)

__all__ = ["FAMILIES", "Family", "VisionCall"]
