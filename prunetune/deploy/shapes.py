"""Shapes: real-size models with random weights, built on the device without a download.

Speed depends on sizes, not on what the weights are, so anyone can measure what pruning pays. The
sizes are those of the published checkpoints' ``config.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from prunetune.errors import ConfigError

_CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA, a LLaVA-NeXT or a Qwen2.5-VL.

    Attributes:
        name: What ``--shape`` takes.
        model_type: The transformers ``model_type``.
        about: One line for people.
        text: Fields of the decoder's config, ``model_type`` included.
        vision: Fields of the tower's config: CLIP's, or Qwen2.5-VL's.
        pinpoints: Picture sizes that any-resolution tiles can form; empty for one view a picture.
        picture: Height and width of a picture unless one is asked for.
        dtype: Of the weights unless one is asked for.
    """

    name: str
    model_type: str
    about: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any] = field(default_factory=lambda: _CLIP_L_336)
    pinpoints: tuple[tuple[int, int], ...] = ()
    picture: tuple[int, int] = (336, 336)
    dtype: str = "bfloat16"

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.text["num_hidden_layers"])

    @property
    def unit(self) -> int:
        """Side of a token in pixels where pictures keep their size; 0 where views are fixed."""
        merge = int(self.vision.get("spatial_merge_size", 0))
        return merge * int(self.vision["patch_size"])

    def patches(self, views: int, tokens: int) -> int:
        """Return how many patches the tower sees of a picture of so many views and tokens."""
        if self.unit:
            return tokens * int(self.vision["spatial_merge_size"]) ** 2
        side = int(self.vision["image_size"]) // int(self.vision["patch_size"])
        return views * (side * side + 1)

    def config(self) -> Any:
        """Return the transformers config."""
        from transformers import AutoConfig

        text = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **self.text}
        last = int(text["vocab_size"]) - 1
        if self.unit:
            names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
            placed = {f"{name}_id": last - k for k, name in enumerate(names)}
            sizes = {"vision_config": dict(self.vision), "text_config": text}
            return AutoConfig.for_model(self.model_type, **sizes, **placed)
        fields: dict[str, Any] = {
            "vision_config": {"model_type": "clip_vision_model", **self.vision},
            "text_config": text,
            "image_token_index": last,
            "vision_feature_layer": -2,
        }
        if self.pinpoints:
            fields["image_grid_pinpoints"] = [list(pair) for pair in self.pinpoints]
        return AutoConfig.for_model(self.model_type, **fields)

    def shrunk(self) -> "Shape":
        """Return the same kind of model, small enough for a test: 4 layers, 16 patches a view."""
        small = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
        }
        if self.unit:
            text = {**self.text, **small, "rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}}
            sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "depth": 2}
            vision = {**self.vision, **sizes, "num_heads": 4, "fullatt_block_indexes": [1]}
            name = f"{self.name} (shrunk)"
            return replace(self, name=name, text=text, vision=vision, picture=(224, 224))
        vision = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        }
        side = int(self.vision["image_size"])
        scaled = [
            (height * 32 // side, width * 32 // side)
            for height, width in (self.picture, *self.pinpoints)
        ]
        return replace(
            self,
            name=f"{self.name} (shrunk)",
            text={**self.text, **small},
            vision=vision,
            picture=scaled[0],
            pinpoints=tuple(scaled[1:]),
            dtype="float32",
        )


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": 32064,
        "max_position_embeddings": 32768,
    }


_ROPE = {"rope_type": "default", "rope_theta": 1e6}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "llava-next-7b",
            "llava_next",
            "LLaVA-NeXT Mistral 7B: 2,880 patches of a 672 x 672 picture and 48 separators",
            {**_llama(4096, 14336, 32, 32, 8), "model_type": "mistral", "sliding_window": None},
            pinpoints=_PINPOINTS,
            picture=(672, 672),
        ),
        Shape(
            "llava-1.5-7b",
            "llava",
            "LLaVA-1.5 Vicuna 7B: 576 patches a picture",
            _llama(4096, 11008, 32, 32, 32),
        ),
        Shape(
            "mid",
            "llava_next",
            "for a CPU: 24 layers, d=512, 1,479 image tokens a picture; a small tower",
            {**_llama(512, 1408, 24, 8, 8), "vocab_size": 1000, "max_position_embeddings": 8192},
            vision={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 68,
                "patch_size": 4,
            },
            pinpoints=((136, 136),),
            picture=(136, 136),
            dtype="float32",
        ),
        Shape(
            "mid-qwen",
            "qwen2_5_vl",
            "for a CPU: 1,024 tokens of 896 x 896 pixels; its tower is a third of the FLOPs",
            {
                **_llama(512, 1408, 12, 8, 8),
                "model_type": "qwen2_5_vl_text",
                "vocab_size": 1000,
                "rope_parameters": {**_ROPE, "mrope_section": [8, 12, 12]},
            },
            vision={
                "depth": 6,
                "hidden_size": 256,
                "intermediate_size": 683,
                "num_heads": 4,
                "out_hidden_size": 512,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [5],
            },
            picture=(896, 896),
            dtype="float32",
        ),
    )
}


def shape_named(name: str) -> Shape:
    """Return a shape by name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in SHAPES:
        near = get_close_matches(name, SHAPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--shape: received {name!r}, allowed {', '.join(SHAPES)}{hint}")
    return SHAPES[name]


def count_parameters(config: Any) -> int:
    """Return how many parameters a model of this config has; nothing is allocated."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def build(shape: Shape, *, device: Any, dtype: Any, attn: str = "sdpa") -> Any:
    """Return a model of the shape with random weights, in evaluation mode, made on ``device``.

    Raises:
        ConfigError: transformers cannot build it as asked, e.g. FlashAttention is not installed.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    config = shape.config()
    torch.manual_seed(0)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(
                config, dtype=dtype, attn_implementation=attn
            )
    except (ImportError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(f"--shape {shape.name} cannot be built with {attn}: {reason}") from None
    # Made on the device, but buffers of some classes are not.
    model = model.to(device).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    # A random model would now and then say the placeholder of an image.
    model.generation_config.suppress_tokens = [int(config.image_token_id)]
    return model
