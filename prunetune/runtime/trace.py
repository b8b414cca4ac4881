"""What a pruned forward did, for people and tests."""

from dataclasses import dataclass, field

from torch import Tensor

from prunetune.tokens import ImageGeometry


@dataclass(frozen=True)
class StageTrace:
    """What one stage did in one forward.

    Attributes:
        layer: The stage's layer.
        before: Image tokens alive before the stage, per batch row.
        after: Image tokens alive after it, per batch row.
        kept: Per batch row the slots of the surviving image tokens, ``[after[b]]`` int64
            ascending, counted in the input sequence of this forward.
        scores: Per batch row and image the importance of the patches alive before the stage,
            ``[patches]`` float32.
    """

    layer: int
    before: list[int]
    after: list[int]
    kept: list[Tensor]
    scores: list[list[Tensor]]


@dataclass(frozen=True)
class ForwardTrace:
    """What one forward with images did.

    Attributes:
        image_slots: Per batch row the slots of all image tokens, ``[n]`` int64 ascending.
        lengths: Per batch row the number of tokens of each of its images.
        geometries: Per batch row where each token of each of its images comes from.
        stages: One entry a stage, in order.
    """

    image_slots: list[Tensor]
    lengths: list[list[int]]
    geometries: list[list[ImageGeometry]]
    stages: list[StageTrace] = field(default_factory=list)
