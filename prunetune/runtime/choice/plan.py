"""A config resolved for one model: what every forward reads."""

from collections.abc import Sequence

from prunetune.config import PruningConfig, Stage
from prunetune.families import Family
from prunetune.runtime.choice.question import marks_of
from prunetune.runtime.layers.segment import Segment
from prunetune.runtime.layers.widened import WIDENED
from prunetune.scorers import Scorer
from prunetune.scorers.base import LAYER_NEEDS, PROMPT_NEEDS


class Plan:
    """A pruning config resolved for one model; immutable and shared by all forwards.

    Attributes:
        family: Where things are in the model.
        stages: The config's stages.
        tapped: Decoder layers whose states a later stage scores.
        row_layers: Those of them whose last-query attention row is needed.
        needs: What the vision tower and the language model must be tapped for.
        marks: How the tokens of a question are told; None where nothing asks for them.
        packed: Whether positions are renumbered after the layer-0 stage.
        separators: Whether separators stay, as the config says.
        digest: Of the config.
        uses_mass: Whether tokens count for how many they stand for.
        widens: Whether attention takes that by wider heads, having no mask for it.
        keyed: The decoder layers that keep keys of tokens, in order; others carry a state, or reuse
            the keys of one before them.
        first_of_kinds: The first of these of each kind; others of it share its mask.
        memo_keys: Scorer's ``id`` to what identifies its scores of an untouched image; scorers
            with tunable hyperparameters have none.
    """

    def __init__(self, family: Family, config: PruningConfig) -> None:
        self.family = family
        self.config = config
        self.stages: tuple[Stage, ...] = config.stages
        self.packed = config.positions == "packed"
        self.separators = config.separators
        self.digest = config.digest()
        used = [(s.layer, scorer) for s in self.stages for scorer in self.scorers_of(s)]
        layered = [(k, sc) for k, sc in used if sc.needs & LAYER_NEEDS]
        self.tapped = frozenset(k - 1 for k, _ in layered)
        self.row_layers = frozenset(k - 1 for k, sc in layered if "last_query" in sc.needs)
        self.norm_layers = frozenset(k - 1 for k, sc in layered if "layer_states" in sc.needs)
        self.uses_mass = any(stage.mass > 0 for stage in self.stages)
        implementation = getattr(family.text_model.config, "_attn_implementation", None)
        self.widens = self.uses_mass and implementation in WIDENED
        self.memo_keys = {
            id(sc): f"{k}:{sc.model_dump_json(exclude={'weight'})}"
            for k, sc in used
            if type(sc).is_fixed()
        }
        depth = len(family.layers)
        self.keyed = [k for k in range(depth) if family.holds(k)]
        kinds = [family.layer_kind(k) for k in range(depth)]
        self.first_of_kinds = sorted({kinds.index(kinds[k]) for k in self.keyed})
        asked = {need for _, sc in used for need in sc.needs}
        self.needs = frozenset(asked) - PROMPT_NEEDS
        asked |= {need for s in self.stages if s.selector is not None for need in s.selector.needs}
        self.marks = marks_of(family) if "question" in asked else None

    def keyed_from(self, layer: int) -> int:
        """Return the first decoder layer at or behind ``layer`` that keeps keys."""
        return next(k for k in self.keyed if k >= layer)

    def due(self, number: int, layer: int) -> bool:
        """Tell whether stage ``number`` (from 0) is there and at ``layer``."""
        return number < len(self.stages) and self.stages[number].layer == layer

    def scorers_of(self, stage: Stage) -> list[Scorer]:
        """Return the stage's scorers that have their inputs at its layer."""
        return [scorer for scorer in stage.scorers if scorer.usable_at(stage.layer)]

    def needs_of(self, stage: Stage) -> frozenset[str]:
        """Return what has to be known of an image's patches at a stage."""
        needs = {need for scorer in self.scorers_of(stage) for need in scorer.needs}
        if stage.selector is not None or stage.restorer is not None:
            needs.add("states")
        return frozenset(needs)

    def lengths(self, segments: Sequence[Segment], total: int) -> list[int]:
        """Return how many tokens each decoder layer holds after a forward that pruned.

        Up to the last one that holds some.

        Args:
            segments: Of the forward, one a stage.
            total: Tokens of the sequence, dropped ones included.
        """
        firsts = [stage.layer for stage in self.stages] or [len(self.family.layers)]
        ends = [*firsts[1:], len(self.family.layers)]
        held = [total] * firsts[0]
        for segment, first, end in zip(segments, firsts, ends, strict=True):
            held += [segment.past + segment.valid.shape[1]] * (end - first)
        return held[: self.keyed[-1] + 1]
