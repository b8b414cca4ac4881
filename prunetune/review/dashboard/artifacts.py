"""Files that belong to trials: where they lie, and what prunetune puts there."""

import csv
import io
import json
import mimetypes
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from optuna.artifacts.exceptions import ArtifactNotFound

from prunetune.files import appearing, open_plain
from prunetune.review.facts import StudyFacts, TrialFacts

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from prunetune.calibration import Sample

FOLDER = "artifacts"
"""Name of the folder inside a run's folder."""
# Optuna lets nobody add anything to a trial that has ended (``upload_artifact`` too), so the files
# of a trial stand where Optuna dashboard has its own uploads: among the study's attributes.
_KEY = "dashboard:artifacts:"
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")


class ArtifactFolder:
    """A store of Optuna's artifacts that never reads or writes outside its folder.

    Names come from a database that others may write to: only plain ones are taken, and links are
    not followed.

    Args:
        folder: Made when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, artifact_id: str) -> Path:
        if _ID.fullmatch(artifact_id) is None:
            raise ArtifactNotFound(f"no artifact has the name {artifact_id!r}")
        return self.folder / artifact_id

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file.

        Raises:
            ArtifactNotFound: There is none of this name in the folder itself.
        """
        try:
            return cast(
                "BinaryIO", open_plain(self._path(artifact_id), os.O_RDONLY | os.O_NOFOLLOW)
            )
        except OSError as error:
            raise ArtifactNotFound(f"{artifact_id}: {error.strerror}") from None

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file, whole or not at all.

        Raises:
            ArtifactNotFound: The name is no plain one.
            OSError: It cannot be written; it names the folder.
        """
        path = self._path(artifact_id)
        try:
            with appearing(path) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(content_body, file)
        except OSError as error:
            # The file's name is a new one at each try, and means nothing to whoever reads it.
            reason = error.strerror or str(error)
            raise OSError(error.errno, reason, str(self.folder)) from error

    def remove(self, artifact_id: str) -> None:
        """Remove a file; of a link, the link.

        Raises:
            ArtifactNotFound: There is none.
        """
        try:
            self._path(artifact_id).unlink()
        except OSError as error:
            raise ArtifactNotFound(f"{artifact_id}: {error.strerror}") from None


def attached(study: "Study", trial: "FrozenTrial") -> dict[str, str]:
    """Return the files of a trial: name to artifact id."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    prefix = f"{_KEY}{trial._trial_id}:"
    metas = [json.loads(value) for key, value in attrs.items() if key.startswith(prefix)]
    # A file that a person removed in the dashboard is None there.
    return {meta["filename"]: meta["artifact_id"] for meta in metas if meta is not None}


def attach(
    study: "Study", trial: "FrozenTrial", store: ArtifactFolder, name: str, content: bytes
) -> bool:
    """Add a file to a trial, unless it has one of that name; return whether it was added.

    Raises:
        OSError: The file cannot be written.
    """
    if name in attached(study, trial):
        return False
    artifact = str(uuid.uuid4())
    # First the file: what the study names is there.
    store.write(artifact, io.BytesIO(content))
    meta = {
        "artifact_id": artifact,
        "filename": name,
        "mimetype": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "encoding": None,
    }
    key = f"{_KEY}{trial._trial_id}:{artifact}"
    study._storage.set_study_system_attr(study._study_id, key, json.dumps(meta))
    return True


def samples_csv(
    facts: StudyFacts, trial: TrialFacts, samples: "Sequence[Sample] | None" = None
) -> bytes:
    """Return a trial's metric on each calibration sample as CSV, worst first.

    Args:
        facts: The study.
        trial: One that was measured.
        samples: The calibration split in the study's order; adds what was asked.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    asked = ["id", "type", "question", "answer"] if samples is not None else []
    writer.writerow(["sample", *asked, facts.axis()])
    for index, value in sorted(trial.samples.items(), key=lambda item: (-item[1], item[0])):
        row: list[Any] = [index]
        if samples is not None:
            sample = samples[index] if index < len(samples) else None
            row += [_cell(getattr(sample, name, None)) for name in asked]
        writer.writerow([*row, f"{value:.6g}"])
    return buffer.getvalue().encode()


def _cell(text: str | None) -> str:
    """Return text from data for a spreadsheet, which must not take it for a formula."""
    shown = text or ""
    return f"'{shown}" if shown[:1] in ("=", "+", "-", "@", "\t", "\r") else shown
