"""What a family's vision tower and projector multiply, and what on: FLOPs are counted from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from prunetune.families.base_calls import VisionCall
from prunetune.families.base_configs import grid_side


@dataclass(frozen=True)
class Tower:
    """Multiply-adds of a vision tower with what projects its features.

    Attributes:
        patch: Of a patch, when it is embedded.
        row: Of a row (a patch, a CLS token) in all layers, without attention's own two products.
        token: Of a token that is projected.
        whole: Width of the queries, added up over the layers in which a view's rows see one
            another: a pair of rows costs it twice.
        within: The same of layers whose rows see one another within windows only.
    """

    patch: float = 0.0
    row: float = 0.0
    token: float = 0.0
    whole: float = 0.0
    within: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What the tower is given. It adds up over pictures, and a mean over prompts is exact.

    Attributes:
        patches: Patches embedded.
        rows: Rows in the layers: patches and CLS tokens.
        tokens: Tokens projected: before separators come, and before padding goes.
        pairs: Pairs of rows that see one another.
        window_pairs: The same in layers that attend within windows.
    """

    patches: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0
    pairs: float = 0.0
    window_pairs: float = 0.0

    def __add__(self, other: "Seen") -> "Seen":
        names = [field.name for field in fields(self)]
        return Seen(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @classmethod
    def mean(cls, parts: "Sequence[Seen]") -> "Seen":
        """Return the mean of some prompts'."""
        return sum(parts, cls()).times(1 / len(parts))

    def times(self, factor: float) -> "Seen":
        """Return so many times this."""
        return Seen(**{f.name: factor * getattr(self, f.name) for f in fields(self)})


class Towered:
    """The part of a family that says what its tower is; the defaults fit LLaVA-like models."""

    config: Any

    @property
    def _view(self) -> Any:
        """This, as the family that it is a part of."""
        return self

    @property
    def tower(self) -> Any:
        """The vision tower; where videos have one of their own, that of the pictures."""
        return self._view.base.vision_tower

    def tower_layers(self) -> Any:
        """Return the layers of the vision tower."""
        return getattr(self.tower, "vision_model", self.tower).encoder.layers

    def projectors(self) -> list[nn.Module]:
        """Return what turns the tower's rows into tokens."""
        return [self._view.base.multi_modal_projector]

    def windowed_layers(self) -> frozenset[int]:
        """Return which tower layers attend within windows only."""
        return frozenset()

    def tower_shape(self) -> Tower:
        """Return what the tower multiplies, by the shapes of its modules."""
        layers = list(self.tower_layers())
        apart = [*layers, *self.projectors()]
        inside = {id(module) for part in apart for module in part.modules()}
        outside = [module for module in self.tower.modules() if id(module) not in inside]
        convolutions = [module for module in outside if hasattr(module, "kernel_size")]
        # SigLIP 2 is given patches, not pictures.
        linear = [
            module
            for name, module in self.tower.named_modules()
            if name.endswith("patch_embedding") and isinstance(module, nn.Linear)
        ]
        widths = [int(module.out_channels) for module in convolutions]
        width = max([*widths, *(int(module.out_features) for module in linear)])
        windowed = len([k for k in self.windowed_layers() if k < len(layers)])
        return Tower(
            patch=sum(map(_convolved, convolutions)) + sum(map(weights_passed, linear)),
            # SigLIP's head, where a checkpoint has it, makes keys and values of every patch.
            row=sum(map(weights_passed, layers))
            + sum(2 * m.embed_dim**2 for m in outside if isinstance(m, nn.MultiheadAttention)),
            token=sum(map(weights_passed, self.projectors())),
            whole=width * (len(layers) - windowed),
            within=width * windowed,
        )

    def seen(self, inputs: Mapping[str, Any]) -> Seen:
        """Return what the tower is given by the inputs of a prompt or a batch of prompts.

        Args:
            inputs: As the processor returns them.
        """
        return sum((self.looked(call) for call in _calls(inputs)), Seen())

    def looked(self, call: VisionCall) -> Seen:
        """Return what the tower is given in one call; the default fits towers of fixed views."""
        views = sum(self._view.views(call))
        patches = math.prod(grid_side(self.config))
        rows = patches + bool(self._view.vision_has_cls())
        return Seen(
            patches=views * patches,
            rows=views * rows,
            tokens=views * self.projected(call, rows),
            pairs=views * rows**2,
        )

    def projected(self, call: VisionCall, rows: int) -> float:
        """Return how many tokens of a view with ``rows`` rows are projected."""
        whole = getattr(self.config, "vision_feature_select_strategy", "default") == "full"
        patches = rows - bool(self._view.vision_has_cls())
        tokens: float = (rows if whole else patches) / self._view.patches_per_token
        return tokens


def _calls(inputs: Mapping[str, Any]) -> Iterator[VisionCall]:
    """Yield the encoder calls that a model makes of its inputs."""
    for modality, names in (
        ("image", ("pixel_values", "pixel_values_images")),
        ("video", ("pixel_values_videos",)),
    ):
        given = [inputs[name] for name in names if inputs.get(name) is not None]
        if given:
            others = {k: v for k, v in inputs.items() if not k.startswith("pixel_values")}
            yield VisionCall({**others, names[0]: given[0]}, [0] * len(given[0]), modality)


def weights_passed(module: nn.Module, chosen: int = 0) -> float:
    """Return the multiply-adds that all matrices of a module make of one row.

    Args:
        module: Its convolutions are over one patch or one merged block each.
        chosen: Experts that a row passes, where there are several.
    """
    total = 0.0
    part: Any
    for part in module.modules():
        # By their names: quantized matrices are not nn.Linear, and are packed.
        if hasattr(part, "in_features") and hasattr(part, "out_features"):
            total += int(part.in_features) * int(part.out_features)
        elif hasattr(part, "kernel_size") and hasattr(part, "in_channels"):
            total += _convolved(part)
        elif not isinstance(part, nn.Embedding):
            own = list(part.parameters(recurse=False))
            total += sum(p.numel() for p in own if p.ndim == 2)
            # Experts' matrices stand behind one another.
            total += sum(chosen * p.numel() / len(p) for p in own if p.ndim == 3)
    return float(total)


def _convolved(part: Any) -> float:
    """Return the multiply-adds of a convolution at one place."""
    channels = int(part.in_channels) * int(part.out_channels) // int(part.groups)
    size = part.kernel_size
    return float((math.prod(size) if isinstance(size, tuple) else size) * channels)


def window_pairs(rows: int, cols: int, side: int, cell: int) -> float:
    """Return the pairs of patches within windows of ``side`` x ``side`` tokens, cut at the edges.

    Args:
        rows: Of a frame's tokens.
        cols: Of a frame's tokens.
        side: Of a window, in tokens.
        cell: Patches of a token.
    """
    squares = [(length // side) * side**2 + (length % side) ** 2 for length in (rows, cols)]
    return float(squares[0] * squares[1] * cell**2)
