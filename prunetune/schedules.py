"""What holds between the stages of a schedule."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunetune.config import Stage


def check_version(version: int, stages: "Sequence[Stage]") -> None:
    """Check that a file's version has all that its stages use.

    Raises:
        ValueError: One line that names what came with a later version.
    """
    if version > 1:
        return
    for i, stage in enumerate(stages):
        if not stage.retention:
            raise ValueError(
                f"stages.{i}.retention: received 0, allowed a number above 0 and at most 1 in a "
                "file of version 1; 0, an exit, is of version 2"
            )
        for scorer in stage.scorers:
            if scorer.since > 1:
                raise ValueError(
                    f"version: received 1, but scorer {scorer.name} has a field of version 2; "
                    'write "version": 2'
                )
        if stage.is_new:
            raise ValueError(
                f"version: received 1, but stages.{i} has a selector, mass or a restorer of "
                'version 2; write "version": 2'
            )


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
        if not stage.retention:
            _check_exit(where, stage, last=i == len(stages) - 1)
        else:
            _check_scorers(where, stage, first=i == 0)
            _check_selector(where, stage)
        if stage.restorer is not None:
            least = stage.restorer.least_retention() * retention
            if stage.retention < least - 1e-9:
                raise ValueError(
                    f"{where}.restorer: {stage.restorer.name} leaves at least {least:.6g} of the "
                    f"tokens, but the retention is {stage.retention}; weaken the restorer or "
                    "raise the retention"
                )
        layer, retention = stage.layer, stage.retention


def _check_exit(where: str, stage: "Stage", *, last: bool) -> None:
    if not stage.layer:
        raise ValueError(
            f"{where}.retention: received 0, allowed above 0 at layer 0: a prompt without its "
            "pictures is another prompt; exit at a later layer"
        )
    if not last:
        raise ValueError(
            f"{where}.retention: received 0, but a stage follows: nothing is left to choose from; "
            "make the exit the last stage"
        )
    extra = [n for n in ("scorers", "restorer", "selector", "mass") if getattr(stage, n)]
    if extra:
        raise ValueError(
            f"{where}.{extra[0]}: received a value beside retention 0, which keeps nothing; leave "
            "it out"
        )


def _check_selector(where: str, stage: "Stage") -> None:

    selector, restorer = stage.selector, stage.restorer
    if selector is None:
        return
    if restorer is not None and restorer.chooses():
        raise ValueError(
            f"{where}.restorer: {restorer.name} chooses what is kept by itself, and so does the "
            f"selector {selector.name}; leave one of them out"
        )
    unusable = sorted(
        scorer.name
        for scorer in stage.scorers
        if scorer.name in selector.uses_scorers and not scorer.usable_at(stage.layer)
    )
    if unusable:
        raise ValueError(
            f"{where}.selector: {selector.name} uses the scorer {', '.join(unusable)}, which needs "
            "states of a decoder layer, and a stage at layer 0 has none; move the stage to layer 1 "
            "or later"
        )
    missing = selector.uses_scorers - {scorer.name for scorer in stage.scorers}
    if missing:
        raise ValueError(
            f"{where}.selector: {selector.name} uses the scorer {', '.join(sorted(missing))}, "
            "which the stage does not have; add it to scorers (with weight 0 it counts there "
            "only)"
        )


def _check_scorers(where: str, stage: "Stage", *, first: bool) -> None:
    if not stage.scorers:
        if first and stage.selector is None:
            raise ValueError(f"{where}.scorers: the first stage needs at least one scorer")
        return
    names = [scorer.name for scorer in stage.scorers]
    if len(set(names)) != len(names):
        raise ValueError(f"{where}.scorers: received {names}, every scorer may appear once")
    usable = [scorer.usable_at(stage.layer) for scorer in stage.scorers]
    if not any(usable) and stage.selector is None:
        raise ValueError(
            f"{where}.scorers: {', '.join(names)} need states of a decoder layer, which a stage at "
            "layer 0 has not; move the stage to layer 1 or later, or add another scorer"
        )
