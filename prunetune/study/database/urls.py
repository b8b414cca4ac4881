"""Names of databases, and what of them nobody may see."""

import re
from pathlib import Path

DATABASE = "study.db"
_SECRET = re.compile(r"(://[^:/@\s]*:)\S*(?=@)|((?:password|passwd|token)=)[^&\s]+", re.I)


def redact(message: str) -> str:
    """Return ``message`` (a storage URL, or a message that holds one) with passwords replaced."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2]}***", message)


def storage_url(out: Path, storage: str | None) -> str:
    """Return the URL of the database: the one given, or SQLite in the run's folder."""
    if storage is None:
        return file_url(out / DATABASE)
    # The drivers that SQLAlchemy would take for these names are not what prunetune installs.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", storage)


def file_url(path: Path) -> str:
    """Return the URL of an SQLite file, whatever characters its path holds."""
    # Not at the top: what only asks whether a study is there shall answer at once.
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(path.resolve()))
    return url.render_as_string(hide_password=False)
