"""Short names of models: where their weights are, what they need, and how support is proven."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from prunetune.models.embedded import EDITION, NAME, is_embedded

RECORD = "support.json"
"""In this package: results of the contract tests, written by ``tools/support_matrix.py``."""


@dataclass(frozen=True)
class Alias:
    """A short name of a model.

    Args:
        alias: The name.
        hub_id: Where its weights are; for ``tiny``, inside the package.
        model_type: Its family.
        parameters: In billions, as published.
        study: Name of its study spec in ``studies/``, if there is one.
    """

    alias: str
    hub_id: str
    model_type: str
    parameters: float
    study: str | None = None

    @property
    def embedded(self) -> bool:
        """Whether the weights are inside the package, or of an earlier one in the repository."""
        return is_embedded(self.alias)

    @property
    def size(self) -> str:
        """Parameters and size of the weights, for people."""
        if self.embedded:
            where = "embedded" if self.alias == NAME else "in the repository"
            return f"4 M parameters, 9 MB, {where}"
        return f"{self.parameters:.1f} B, {self.weights_gb:.0f} GB"

    @property
    def weights_gb(self) -> float:
        """Gigabytes of the weights in bfloat16."""
        return 2 * self.parameters

    @property
    def memory_gb(self) -> float:
        """Gigabytes a device needs in bfloat16: weights and a fifth for cache and activations."""
        return 1.2 * self.weights_gb

    @property
    def supported(self) -> bool:
        """Whether this release has the model's family."""
        from prunetune.families import FAMILIES

        return self.model_type in FAMILIES

    @property
    def status(self) -> str:
        """``supported``, or why the model cannot be loaded."""
        return (
            "supported"
            if self.supported
            else f"planned: no family {self.model_type} in this release"
        )

    @property
    def proof(self) -> str:
        """What support rests on, from the recorded results of the contract tests."""
        if self.embedded:
            return "its trained weights, in every test run"
        results = record().get("families", {}).get(self.model_type, {})
        if not self.supported or not results:
            return "no results recorded"
        counts = "; ".join(
            f"transformers {version}: {_outcome(result)}"
            for version, result in sorted(results.items())
        )
        return f"contract tests on random models of its class, {counts}; weights not run"


def _outcome(result: dict[str, int]) -> str:
    failed = f", {result['failed']} FAILED" if result["failed"] else ""
    return f"{result['passed']} passed{failed}"


@cache
def record() -> dict[str, Any]:
    """Return the recorded results; empty where none were."""
    path = files("prunetune").joinpath(RECORD)
    data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return data


ALIASES = (
    Alias("tiny", "prunetune/embedded/tiny", "llava_next", 0.004, "tiny"),
    *(
        Alias(f"{NAME}-{n}", f"training/{NAME}-{n}/model", "llava_next", 0.004)
        for n in range(1, EDITION)
    ),
    Alias("llava-1.5", "llava-hf/llava-1.5-7b-hf", "llava", 7.06, "llava-1.5"),
    Alias("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", "llava", 13.35),
    Alias("llava-next", "llava-hf/llava-v1.6-mistral-7b-hf", "llava_next", 7.57, "llava-next"),
    Alias(
        "llava-next-vicuna",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava_next",
        7.06,
        "llava-next-vicuna",
    ),
    Alias(
        "llava-onevision",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "llava_onevision",
        8.03,
        "llava-onevision",
    ),
    Alias("llava-next-video", "llava-hf/LLaVA-NeXT-Video-7B-hf", "llava_next_video", 7.06),
    Alias("video-llava", "LanguageBind/Video-LLaVA-7B-hf", "video_llava", 7.37, "video-llava"),
    Alias("qwen2-vl", "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl", 8.29, "qwen2-vl"),
    Alias("qwen2.5-vl", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", 8.29, "qwen2.5-vl"),
    Alias("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", 3.75),
    Alias("qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl", 8.77, "qwen3-vl"),
    Alias("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", "qwen3_vl", 4.44),
    Alias("qwen3-vl-30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe", 30.0),
    Alias("qwen3.5-9b", "Qwen/Qwen3.5-9B", "qwen3_5", 9.41),
    Alias("qwen3.5-27b", "Qwen/Qwen3.5-27B", "qwen3_5", 27.0),
    Alias("qwen3.5-35b-a3b", "Qwen/Qwen3.5-35B-A3B", "qwen3_5_moe", 35.11),
    Alias("glm-4.1v", "zai-org/GLM-4.1V-9B-Thinking", "glm4v", 10.29),
    Alias("glm-4.6v-flash", "zai-org/GLM-4.6V-Flash", "glm46v", 9.0),
    Alias("mistral-small-3.1", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral3", 24.0),
    Alias("lfm2-vl-1.6b", "LiquidAI/LFM2-VL-1.6B", "lfm2_vl", 1.6),
    Alias("ovis2-2b", "thisisiron/Ovis2-2B-hf", "ovis2", 2.0),
    Alias("granite-vision-4.1", "ibm-granite/granite-vision-4.1-4b", "granite4_vision", 4.0),
    Alias("molmo2-8b", "allenai/Molmo2-8B", "molmo2", 8.69),
    Alias("minicpm-v-4.6", "openbmb/MiniCPM-V-4.6", "minicpmv4_6", 1.3),
    Alias("paddleocr-vl", "PaddlePaddle/PaddleOCR-VL", "paddleocr_vl", 0.9),
    Alias("kimi-k2.5", "moonshotai/Kimi-K2.5", "kimi_k25", 1000.0),
    Alias("internvl3", "OpenGVLab/InternVL3-8B-hf", "internvl", 7.94, "internvl3"),
    Alias("gemma3-4b", "google/gemma-3-4b-it", "gemma3", 4.30),
    Alias("gemma3-12b", "google/gemma-3-12b-it", "gemma3", 12.19),
    Alias("gemma4-e2b", "google/gemma-4-E2B-it", "gemma4", 5.1),
    Alias("gemma4-e4b", "google/gemma-4-E4B-it", "gemma4", 8.0),
    Alias("gemma4-26b-a4b", "google/gemma-4-26B-A4B-it", "gemma4", 26.0),
    Alias("gemma4-31b", "google/gemma-4-31B-it", "gemma4", 30.7),
    Alias("llama4-scout", "meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4", 109.0),
    Alias("paligemma2-3b", "google/paligemma2-3b-mix-224", "paligemma", 3.03),
    Alias("idefics3", "HuggingFaceM4/Idefics3-8B-Llama3", "idefics3", 8.46),
    Alias("smolvlm2", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "smolvlm", 2.25),
)
