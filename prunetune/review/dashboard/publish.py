"""Writes into a study what reviewers see in Optuna dashboard: notes, figures, pictures, tables."""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from prunetune.review.dashboard import notes
from prunetune.review.dashboard.artifacts import ArtifactFolder, attach, attached, samples_csv
from prunetune.review.facts import StudyFacts, TrialFacts, study_facts
from prunetune.secrets import redact
from prunetune.study.outcome.savings import KEY as SAVINGS

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from prunetune.calibration import Sample
    from prunetune.config import PruningConfig

logger = logging.getLogger(__name__)

_NOTED = 5
_PICTURED = 3
_LINE, _HEIGHT = 66, 448
_COUNTS = "prunetune:counts:"


@dataclass
class Publisher:
    """Keeps one study's notes, figures and files up to date.

    Only what changed is written, and what people wrote below prunetune's notes stays. Whatever
    fails is logged and left out: neither a search nor a dashboard ends over it.

    Attributes:
        study: The study.
        store: Where its files lie; None for none.
        loaded: ``prunetune.models.LoadedModel``, to draw pictures with; None for none.
        samples: The calibration split in the study's order; None where it is not at hand.
    """

    study: "Study"
    store: ArtifactFolder | None = None
    loaded: Any = None
    samples: "Sequence[Sample] | None" = None
    _seen: Any = field(default=None, repr=False)
    _told: str = field(default="", repr=False)

    def refresh(self) -> bool:
        """Write what changed since it was last written; return whether anything was."""
        try:
            facts = study_facts(self.study)
            best = facts.best
            timed = str(facts.attrs.get(SAVINGS))
            about = best and best.number, best and best.values, facts.settled
            state = (*about, timed, facts.finished)
            if state == self._seen:
                return False
            self._write(facts, self._seen is None or state[:3] != self._seen[:3])
        except Exception as error:
            # A database that is away, a full disk, a spec of another release.
            reason = redact(" ".join(str(error).split()))
            if reason != self._told:
                logger.warning(
                    "notes of study %r are not written: %s", self.study.study_name, reason
                )
            self._told = reason
            return False
        self._seen, self._told = state, ""
        return True

    def _write(self, facts: StudyFacts, new_best: bool) -> None:
        from prunetune.review import plots
        from prunetune.review.fronts import front

        if new_best and facts.best is not None:
            frozen = {t.number: t for t in self.study.get_trials(deepcopy=False)}
            for trial in plots.shown_schedules(facts, _NOTED):
                self._trial(facts, trial, frozen[trial.number], trial.number == facts.best.number)
        figures = {"schedules": plots.schedules(facts), "gap-against-cost": front(facts)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, figure in figures.items():
                if figure is not None:
                    save_plotly_graph_object(self.study, _half(figure), graph_object_id=name)
            self._note(self.study, notes.study_note(facts))

    def _trial(
        self, facts: StudyFacts, trial: TrialFacts, frozen: "FrozenTrial", pictured: bool
    ) -> None:
        attrs = self.study._storage.get_study_system_attrs(self.study._study_id)
        counts: list[str] = attrs.get(f"{_COUNTS}{trial.number}", [])
        if self.store is not None and trial.samples:
            table = samples_csv(facts, trial, self.samples)
            attach(self.study, frozen, self.store, f"trial-{trial.number}-samples.csv", table)
        if self.store is not None and pictured and trial.config is not None and not counts:
            counts = self._picture(trial.config, trial.name, frozen, self.store)
        # Optuna dashboard's functions take a running trial; it is only asked for its numbers.
        handle = _Handle(self.study, frozen._trial_id)
        picture = attached(self.study, frozen).get(_kept_name(trial.number))
        place = f"/artifacts/{self.study._study_id}/{frozen._trial_id}/{picture}"
        shown = place if picture is not None else None
        self._note(handle, notes.trial_note(facts, trial, counts, shown))

    def _note(self, target: Any, body: str) -> None:
        before = get_note(target)
        after = notes.kept_below(body, before)
        if after != before:
            save_note(target, after)

    def _picture(
        self, config: "PruningConfig", name: str, frozen: "FrozenTrial", store: ArtifactFolder
    ) -> list[str]:
        """Draw what a trial keeps of a few samples; return the counts."""
        if self.loaded is None or not self.samples:
            return []
        from prunetune.review.pictures.overlay import kept_tokens
        from prunetune.review.pictures.sheet import Row, sheet

        rows: list[Row] = []
        counts, images = [], set()
        for sample in self.samples:
            if len(rows) == _PICTURED:
                break
            if sample.image_id in images or len(sample.images) != 1:
                continue
            images.add(sample.image_id)
            picture = sample.images[0]
            kept = kept_tokens(self.loaded, config, picture, sample.question)
            rows.append(Row(f"{sample.id}: {sample.question}", picture, kept))
            counts.append(f"{sample.id}: {'; '.join(stage.caption for stage in kept.stages)}")
        if not rows:
            return []
        buffer = io.BytesIO()
        sheet(rows, f"{name} of {self.study.study_name}").save(buffer, format="PNG")
        attach(self.study, frozen, store, _kept_name(frozen.number), buffer.getvalue())
        key = f"{_COUNTS}{frozen.number}"
        self.study._storage.set_study_system_attr(self.study._study_id, key, counts)
        return counts


def _kept_name(number: int) -> str:
    return f"trial-{number}-kept.png"


def _half(figure: Any) -> Any:
    """Return a figure laid out for half of a page, which is what Optuna dashboard gives it."""
    from prunetune.review.theme import title_of, wrapped

    text = wrapped(title_of(figure), _LINE)
    lines = 1 + text.count("<br>")
    return figure.update_layout(
        title={"text": text, "font": {"size": 14}, "y": 0.97, "yanchor": "top"},
        height=_HEIGHT,
        margin={"l": 56, "r": 16, "t": 44 + 18 * lines, "b": 100},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.24, "yanchor": "top"},
        # Its buttons would lie on the title.
        modebar={"orientation": "v", "bgcolor": "rgba(0, 0, 0, 0)"},
    )


class _Handle:
    """What Optuna dashboard's notes need of a trial that has ended."""

    def __init__(self, study: "Study", trial_id: int) -> None:
        self.study, self.storage, self._trial_id = study, study._storage, trial_id
