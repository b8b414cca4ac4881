"""The vision tower: DINOv2-small's weights out of an ONNX file, as InternVL's encoder."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import InternVLVisionConfig, InternVLVisionModel

WIDTH, LAYERS, HEADS, PATCH = 384, 12, 6, 14
LAST = "/backbone/layernorm/Add_1_output_0"  # what the graph calls the tower's output
PREFIX = "backbone."
RENAMED = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.projection_layer"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("layer_scale1.lambda1", "lambda_1"),
    ("layer_scale2.lambda1", "lambda_2"),
)


def renamed(name: str) -> str:
    """InternVL's name of one of DINOv2's weights."""
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def read_weights(file: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Weights by InternVL's names, and (1, 1 + 37 x 37, 384) positions of the 518-pixel grid.

    The exporter folded transposed matrices into nameless constants, which the products that read
    them name.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weights = {
        renamed(name.removeprefix(PREFIX)): torch.tensor(value)
        for name, value in stored.items()
        if name.startswith(PREFIX) and "mask_token" not in name
    }
    for node in graph.node:
        owner = re.match(r"/backbone/(.*)/MatMul(_\d+)?$", node.name)
        for name in node.input if owner else ():
            if name in stored and name.startswith("onnx::"):
                where = renamed(owner[1].replace("/", ".")) + ".weight"
                weights[where] = torch.tensor(stored[name].T.copy())
    parts = [v for n, v in stored.items() if n.startswith("onnx::") and v.shape[-1:] == (WIDTH,)]
    first, grid = ([p for p in parts if p.ndim == 3 and p.shape[1] == n] for n in (1, 37 * 37))
    return weights, torch.tensor(np.concatenate([first[0], grid[0]], 1))


def positions_at(positions: Tensor, side: int) -> Tensor:
    """(1, 1 + 37 x 37, width) -> (1, 1 + side x side, width), bicubic as DINOv2 does it."""
    first, grid = positions[:, :1], positions[:, 1:]
    old = int(grid.shape[1] ** 0.5)
    grid = grid.view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], 1)


def build_tower(file: Path, size: int) -> InternVLVisionModel:
    """The tower for pictures of size x size pixels.

    Raises:
        ValueError: A weight is missing or left over.
    """
    config = InternVLVisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        patch_size=[PATCH, PATCH],
        image_size=[size, size],
        attention_bias=True,
        use_qk_norm=False,
        use_absolute_position_embeddings=True,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        norm_type="layer_norm",
        use_mean_pooling=False,
        use_mask_token=False,
        layer_scale_init_value=1.0,
    )
    tower = InternVLVisionModel(config).eval()
    weights, positions = read_weights(file)
    weights["embeddings.position_embeddings"] = positions_at(positions, size // PATCH)
    found = tower.load_state_dict(weights, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise ValueError(f"{file.name}: {found}")
    return tower


def difference(file: Path, tower: Any, pixels: Tensor) -> float:
    """Largest difference of the features to the ONNX run-time's, as a share of the largest one.

    Args:
        pixels: (pictures, 3, size, size), normalised.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    model = onnx.load(str(file))
    model.graph.output.append(helper.make_tensor_value_info(LAST, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    worst = 0.0
    for picture in pixels.split(1):
        [theirs] = session.run([LAST], {name: picture.numpy()})
        with torch.no_grad():
            ours = tower(picture).last_hidden_state.numpy()
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    return worst
