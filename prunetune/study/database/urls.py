"""Names of databases, and what of them nobody may see."""

import re
from pathlib import Path

DATABASE = "study.db"
TABLE = "studies"
COLUMNS = {"study_id", "study_name"}
"""Of Optuna's table; another program may have one of that name."""


def storage_url(out: Path, storage: str | None) -> str:
    """Return the URL of the database: the one given, or SQLite in the run's folder."""
    if storage is None:
        return file_url(out / DATABASE)
    # The drivers that SQLAlchemy would take for these names are not what prunetune installs.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", storage)


def file_url(path: Path) -> str:
    """Return the URL of an SQLite file, whatever characters its path holds."""
    # Not at the top: what only asks whether a study is there shall answer at once.

    # Asked for by verbs that refuse what is no study, at once.
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(path.resolve()))
    return url.render_as_string(hide_password=False)
