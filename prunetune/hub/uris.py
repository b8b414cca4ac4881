"""Addresses of files on the hub: ``hf://org/name/file[@revision]``."""

import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from prunetune.errors import ConfigError

FILE = "config.prune.json"
"""What a config is called on the hub where nobody says otherwise."""

_SCHEME = re.compile(r"hf:/{1,2}")
_REPO = re.compile(r"\w[\w.-]*/[\w.-]+")
_KINDS = {"datasets": "dataset", "spaces": "space", "models": None}
# The only revisions with a slash that may stand before a file.
_REFS = re.compile(r"(refs/(?:pr|convert)/[^/]+)(?:/(.*))?")
_FORM = "hf://ORG/NAME/FILE.json, hf://ORG/NAME/FILE.json@REVISION"


@dataclass(frozen=True)
class Place:
    """A file on the hub.

    Attributes:
        repo: ``owner/name``.
        file: Path inside the repository.
        revision: Branch, tag or commit; None for the main branch.
        kind: ``"dataset"`` or ``"space"``; None for a model.
    """

    repo: str
    file: str = FILE
    revision: str | None = None
    kind: str | None = None

    def __str__(self) -> str:
        """Return its address."""
        prefix = f"{self.kind}s/" if self.kind else ""
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{prefix}{self.repo}/{self.file}{at}"

    def at(self, revision: str) -> "Place":
        """Return the same file at another revision."""
        return replace(self, revision=revision)


def is_uri(text: Any) -> bool:
    """Return whether a text (or a path made of one) is an address on the hub."""
    return _SCHEME.match(str(text)) is not None


def is_repo(name: str) -> bool:
    """Return whether a name has the form ``owner/name``."""
    return _REPO.fullmatch(name) is not None and ".." not in name


def parse(text: Any) -> Place:
    """Return the file that an address names.

    The revision stands after the file, or, as huggingface_hub writes it, after the repository.
    A ``@`` in a file's name is written ``%40``.

    Raises:
        ConfigError: It is no address of a JSON file.
    """
    said = _SCHEME.sub("", str(text)).strip("/")
    parts = said.split("/")
    prefixed = parts[0] in _KINDS and len(parts) > 2
    kind = _KINDS[parts.pop(0)] if prefixed else None
    owner, rest = parts[0], "/".join(parts[1:])
    name, _, file = rest.partition("/")
    name, at, revision = name.partition("@")
    if at:
        named = _REFS.fullmatch(f"{revision}/{file}" if file else revision)
        if named is not None:
            revision, file = named[1], named[2] or ""
    elif "@" in file:
        file, at, revision = file.partition("@")
    return checked(
        Place(f"{owner}/{name}", unquote(file) or FILE, unquote(revision) or None, kind),
        str(text),
        empty=bool(at) and not revision,
    )


def checked(place: Place, received: str, *, empty: bool = False) -> Place:
    """Return a place that can be one.

    Args:
        place: The file.
        received: What was given, for messages.
        empty: Whether a revision was announced and not given.

    Raises:
        ConfigError: It cannot.
    """
    what = None
    if not is_repo(place.repo):
        what = f"{place.repo!r} is no repository"
    elif empty:
        what = "there is no revision after the @"
    elif not place.file.endswith(".json") or ".." in place.file.split("/"):
        what = f"{place.file!r} is no JSON file"
    if what is not None:
        form = _FORM if is_uri(received) else "ORG/NAME, and a file that ends with .json"
        raise ConfigError(f"received {received!r}: {what}; allowed: {form}")
    return place
