"""Rows that measurements leave, one JSON line each: what is there is not measured again.

What rows are of, a model and a pair of sets, stands in each by digests: names stay where what they
name has changed.
"""

import json
from pathlib import Path
from typing import Any

from prunetune.calibration import load_calibration
from prunetune.models import load_model
from prunetune.models.embedded import shipped_data
from prunetune.models.fingerprint import weights_digest

Row = dict[str, Any]


def whose(model: str, data: str | None = None, samples: int | None = None) -> Row:
    """What rows are of: the model's name, its weights, both sets as they are measured."""
    sides = load_calibration(data or shipped_data(model))
    digests = [(side if samples is None else side.limit(samples)).digest()[:12] for side in sides]
    weights = weights_digest(load_model(model).model)[:12]
    return {"model": model, "weights": weights, "data": digests}


def read(path: Path) -> list[Row]:
    """All rows of a file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


class Ledger:
    """Rows of one model on one pair of sets; several processes may write to their file.

    Args:
        path: Of the file; it need not exist.
        about: What rows are of; None to take that from the rows, for a report.
        fields: What these rows have in common, where a file has those of others, too.

    Raises:
        SystemExit: It has rows of something else.
    """

    def __init__(self, path: Path, about: Row | None = None, fields: Row | None = None) -> None:
        self.path, self._fields = path, fields or {}
        found = [row.get("about") for row in self.rows()]
        self.about = about if about is not None or not found else found[0]
        for other in found:
            if other != self.about:
                raise SystemExit(
                    f"{path} has rows of {json.dumps(other)}, these are of "
                    f"{json.dumps(self.about)}; give another --out"
                )

    @property
    def model(self) -> str:
        """Name of the model that rows are of."""
        return str((self.about or {}).get("model", "nothing"))

    def rows(self) -> list[Row]:
        """What has been measured; read anew, since others write, too."""
        return [row for row in read(self.path) if self._fields.items() <= row.items()]

    def add(self, row: Row) -> None:
        """Append a row, whole."""
        with self.path.open("a") as file:
            file.write(json.dumps({**self._fields, **row, "about": self.about}) + "\n")
