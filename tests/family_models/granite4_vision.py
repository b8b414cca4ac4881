"""Granite 4 Vision: any-resolution tiles, features added before layers 0, 2, 3 and 5."""

from typing import Any

import torch
from torch import Tensor
from transformers import Granite4VisionConfig, Granite4VisionForConditionalGeneration

from family_models._base import IMAGE, Piece, TinyFamily, text_settings, widen
from family_models.llava_next import collate_tiles

SIDE = 24
PINPOINTS = [[24, 48], [48, 24], [48, 48], [24, 72]]


class Granite4Vision(TinyFamily):
    model_type = "granite4_vision"
    rows = ((3, (30, 48), 4), (1, (30, 90), (45, 51), 3), ((50, 18), 5, (48, 30), 2))
    image = (30, 90)
    other = (50, 18)
    makes_cache = False
    beams = "transformers repeats each image, not each prompt's images, under beams"
    chunks = "in parts transformers slices features that this model does not have"

    def build(self, attention: str, **text: Any) -> Any:
        vision = {
            "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 4,
            "vision_use_head": False,
        }  # fmt: skip
        former = {
            "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48,
            "cross_attention_frequency": 1, "use_qformer_text_input": False,
            "hidden_size": 64, "encoder_hidden_size": 64, "num_attention_heads": 1,
        }  # fmt: skip
        scales = {
            "embedding_multiplier": 2.0, "logits_scaling": 4.0, "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
        }  # fmt: skip
        config = Granite4VisionConfig(
            text_config=text_settings(**scales | text), vision_config=vision, qformer_config=former,
            image_token_id=IMAGE, image_grid_pinpoints=PINPOINTS, downsample_rate="1/2",
            deepstack_layer_map=[[-1, 0], [-2, 2]], spatial_vision_layer=-1,
            spatial_target_layers=[0, 2, 3, 5], vision_feature_select_strategy="full",
        )  # fmt: skip
        model = Granite4VisionForConditionalGeneration(config)
        for part in ("layerwise_projectors", "spatial_projectors"):
            widen(model, f"model.{part}", 0.1)
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        from transformers.models.llava_next import modeling_llava_next as code

        random = torch.Generator().manual_seed(seed)
        tiles = code.image_size_to_num_patches(item, PINPOINTS, SIDE)
        pixels = torch.randn(1, tiles, 3, SIDE, SIDE, generator=random)
        features = [torch.zeros(tiles, (SIDE // 8) ** 2, 1)]
        packed = model.model.pack_image_features(features, [item], "full", torch.zeros(1))
        count = len((packed[0] if isinstance(packed, tuple) else packed)[0])
        inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([item])}
        return Piece([IMAGE] * count, count, inputs)

    def collate(self, pieces: list[Piece]) -> dict[str, Tensor]:
        return collate_tiles(pieces)


FAMILY = Granite4Vision()
