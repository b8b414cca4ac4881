"""From a stored study to ``report.html``: reads, runs the worst samples again, writes."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.errors import ConfigError, PrunetuneError
from prunetune.files import write_atomically
from prunetune.models.fingerprint import weights_digest
from prunetune.review.facts import StudyFacts, study_facts
from prunetune.review.report.report import Pictures, chosen_config, render
from prunetune.review.report.worst import check_data, measured_part, with_pictures, worst_samples
from prunetune.review.words import verdict
from prunetune.study.opening import other_weights

if TYPE_CHECKING:
    from prunetune.calibration import CalibrationSet
    from prunetune.study.find import Found
    from prunetune.study.prepare import Prepared

REPORT_FILE = "report.html"
Progress = Callable[[str, int, int], None]

logger = logging.getLogger(__name__)

_OTHER_WEIGHTS = (
    "The model's weights are not those of the study: they have changed since, or are in another "
    "number format. Pictures and answers in the report are the present model's, all figures are "
    "the study's."
)


@dataclass(frozen=True)
class Loaded:
    """A study's model and data.

    Attributes:
        model: ``prunetune.models.LoadedModel``.
        calibration: Calibration split.
        held_out: Held-out split.
    """

    model: Any
    calibration: "CalibrationSet"
    held_out: "CalibrationSet"


@dataclass(frozen=True)
class Written:
    """A report that was written.

    Attributes:
        path: Where.
        size: Bytes.
        verdict: Its first sentence.
        missing: Why there are no pictures; empty where there are.
    """

    path: Path
    size: int
    verdict: str
    missing: str


def default_path(found: "Found") -> Path:
    """Return where a study's report goes: its folder, or the current one for a storage URL."""
    if found.folder is not None:
        return found.folder / REPORT_FILE
    name = re.sub(r"[^\w.+-]+", "-", found.study.study_name).strip("-.") or "study"
    return Path(f"{name[:100]}-{REPORT_FILE}")


def write_report(
    found: "Found",
    path: Path,
    load: Callable[[], Loaded] | None,
    progress: Progress = lambda name, done, total: None,
    *,
    show_samples: bool = False,
) -> Written:
    """Write a study's report whole or not at all.

    A model or data that cannot be loaded costs the pictures only; the page says why.

    Args:
        found: The study.
        path: Where the page goes.
        load: Returns the study's model and data; None for a page without pictures.
        progress: Called with what is done, how far, and of how much.
        show_samples: Show conversations, too.

    Raises:
        ConfigError: It cannot be written there.
    """
    facts = study_facts(found.study, found.spec)
    pictures = _pictures(facts, load, progress, show_samples)
    page = render(facts, found.shown, pictures).encode("utf-8", "replace")
    try:
        write_atomically(path, page)
    except OSError as error:
        raise ConfigError(
            f"--output: cannot write {str(path)!r}: {error.strerror or error}; choose another place"
        ) from None
    return Written(path, len(page), verdict(facts)[0], pictures.missing)


def load_for(found: "Found", *, skip_bad: bool = False, **options: Any) -> Loaded:
    """Load a study's data and model.

    Raises:
        PrunetuneError: One of them is not on this machine, or cannot be read.
    """
    from prunetune.models import load_model
    from prunetune.models.options import differing
    from prunetune.study.prepare import load_data, usable

    wanted = found.study.user_attrs.get("digest")
    sides = load_data(found.spec, skip_bad=skip_bad, wanted=wanted)
    options["revision"] = options.get("revision") or found.spec.revision
    options["processor"], _ = differing(found.spec.processor, options.get("processor"))
    model = load_model(found.spec.model, **options)
    return Loaded(model, *usable(sides, model, skip_bad))


def found_search(prepared: "Prepared", storage: str | None, study_name: str | None) -> "Found":
    """Return the study of a search that has just ended."""
    from prunetune.study.find import find_study

    # The folder's database may hold several studies.
    return find_study(storage or str(prepared.out), study_name, prepared.spec)


def report_search(
    prepared: "Prepared",
    storage: str | None,
    study_name: str | None,
    progress: Progress = lambda name, done, total: None,
) -> Written:
    """Write the report of a search that has just ended into its folder; nothing is loaded again."""
    found = found_search(prepared, storage, study_name)
    loaded = Loaded(prepared.loaded, prepared.calibration, prepared.held_out)
    return write_report(found, prepared.out / REPORT_FILE, lambda: loaded, progress)


def _pictures(
    facts: StudyFacts,
    load: Callable[[], Loaded] | None,
    progress: Progress,
    show_samples: bool = False,
) -> Pictures:
    samples = worst_samples(facts)
    config, _ = chosen_config(facts)
    if not samples or config is None:
        return Pictures()
    if load is None:
        return Pictures(samples, "left out as asked.")
    try:
        loaded = load()
        held_out = measured_part(facts, loaded.held_out)
        check_data(facts, loaded.calibration, held_out)
        shown = with_pictures(
            samples,
            loaded.model,
            config,
            loaded.calibration,
            held_out,
            lambda done, total: progress("worst samples", done, total),
            show_samples,
        )
    except (PrunetuneError, OSError) as error:
        return Pictures(samples, f"{' '.join(str(error).split())}.")
    if not other_weights(facts.attrs, weights_digest(loaded.model.model)):
        return Pictures(shown)
    logger.warning("%s", _OTHER_WEIGHTS)
    return Pictures(shown, changed=_OTHER_WEIGHTS)
