"""What holds between the stages of a schedule."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunetune.config import Stage


def check_schedule(stages: "Sequence[Stage]", num_layers: int) -> None:
    """Check that a schedule can be run on a model of ``num_layers`` decoder layers.

    Raises:
        ValueError: One line that names the stage, the value received and what is allowed.
    """
    layer, retention = -1, 1.0
    for i, stage in enumerate(stages):
        where = f"stages.{i}"
        if stage.layer <= layer:
            raise ValueError(
                f"{where}.layer: received {stage.layer}, allowed above {layer}: "
                "layers strictly rise"
            )
        if stage.layer >= num_layers:
            raise ValueError(
                f"{where}.layer: received {stage.layer}, allowed 0 to {num_layers - 1} for "
                f"a model of {num_layers} decoder layers"
            )
        if stage.retention > retention:
            raise ValueError(
                f"{where}.retention: received {stage.retention}, allowed above 0 and at most "
                f"{retention}: retentions never rise"
            )
        _check_scorers(where, stage, first=i == 0)
        if stage.restorer is not None:
            least = stage.restorer.least_retention() * retention
            if stage.retention < least - 1e-9:
                raise ValueError(
                    f"{where}.restorer: {stage.restorer.name} leaves at least {least:.6g} of the "
                    f"tokens, but the retention is {stage.retention}; weaken the restorer or "
                    "raise the retention"
                )
        layer, retention = stage.layer, stage.retention


def _check_scorers(where: str, stage: "Stage", *, first: bool) -> None:
    if not stage.scorers:
        if first:
            raise ValueError(f"{where}.scorers: the first stage needs at least one scorer")
        return
    names = [scorer.name for scorer in stage.scorers]
    if len(set(names)) != len(names):
        raise ValueError(f"{where}.scorers: received {names}, every scorer may appear once")
    if not any(scorer.usable_at(stage.layer) for scorer in stage.scorers):
        raise ValueError(
            f"{where}.scorers: {', '.join(names)} need states of a decoder layer, which a stage at "
            "layer 0 has not; move the stage to layer 1 or later, or add another scorer"
        )
