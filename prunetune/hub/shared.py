"""What a config can do with the hub: come from there, and go there with its card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prunetune.errors import ConfigError
from prunetune.hub.card import CARD, written
from prunetune.hub.files import Pushed, fetch, send, text_there
from prunetune.hub.uris import FILE, Place, checked, is_uri, parse


class OnHub:
    """Mixin of what is written as JSON and kept on the hub."""

    if TYPE_CHECKING:

        @classmethod
        def read(cls, path: Path, origin: str) -> Self: ...  # noqa: D102
        def to_json(self) -> str: ...  # noqa: D102
        def digest(self) -> str: ...  # noqa: D102

    @classmethod
    def from_pretrained(
        cls,
        repo: str | Path,
        *,
        filename: str = FILE,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read a config from a repository of the hub, or from a folder of this machine.

        Fetched once, then taken from the hub's cache where it has not changed; without a network,
        or with ``HF_HUB_OFFLINE``, what is cached is taken.

        Args:
            repo: ``org/name``, an address ``hf://org/name/file[@revision]``, or a folder.
            filename: Path inside it.
            revision: Branch, tag or commit; by default the main branch.
            token: Of the hub; by default the one that ``hf auth login`` keeps, or ``HF_TOKEN``.
            cache_dir: By default the hub's own.
            local_files_only: Look into the cache only.

        Raises:
            ConfigError: There is no such config, or it cannot be fetched; one line.
        """
        if Path(repo).is_dir():
            return cls.read(Path(repo) / filename, str(Path(repo) / filename))
        place = _place(str(repo), filename, revision)
        return cls.fetched(
            place, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )

    @classmethod
    def fetched(cls, address: Any, **options: Any) -> Self:
        """Read a config of the hub.

        Args:
            address: ``hf://org/name/file[@revision]``, or a ``Place``.
            options: See ``prunetune.hub.files.fetch``.

        Raises:
            ConfigError: There is no such config, or it cannot be fetched; one line.
        """
        place = address if isinstance(address, Place) else parse(address)
        path, _ = fetch(place, **options)
        return cls.read(path, str(place))

    def push_to_hub(
        self,
        repo: str,
        *,
        filename: str = FILE,
        revision: str | None = None,
        result: Any = None,
        private: bool | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        token: str | bool | None = None,
    ) -> Pushed:
        """Send the config to a repository of the hub, with a card, in one commit.

        The card has a section for each config, made of the provenance and the held-out table; what
        else stands in it stays. The repository and the branch are made where there are none.

        Args:
            repo: ``org/name``, or an address ``hf://org/name/file[@branch]``.
            filename: Path inside it.
            revision: Branch; by default the main one.
            result: For the held-out table: what ``prunetune.search`` returned, or what
                ``search --json`` printed.
            private: Whether a new repository is private; None for its owner's default.
            create_pr: Open a pull request instead of writing to the branch.
            commit_message: Of the commit.
            token: See ``from_pretrained``.

        Raises:
            ConfigError: The hub did not take it; one line, and nothing was changed there.
        """
        place = _place(repo, filename, revision)
        filename = place.file
        text, digest = self.to_json(), self.digest()
        card = text_there(place, CARD, token=token)
        described = written(card, place, json.loads(text), digest, _told(result))
        return send(
            place,
            {filename: text.encode(), CARD: described.encode()},
            message=commit_message or f"{filename}: prunetune config {digest[:12]}",
            private=private,
            create_pr=create_pr,
            token=token,
        )


def _place(repo: str, filename: str, revision: str | None) -> Place:
    if not is_uri(repo):
        return checked(Place(repo, filename, revision), repo)
    if filename != FILE or revision is not None:
        raise ConfigError(
            f"received {repo!r} and a filename or a revision; an address has both: "
            "hf://ORG/NAME/FILE.json@REVISION"
        )
    return parse(repo)


def _told(result: Any) -> Mapping[str, Any] | None:
    """Return a search's result as plain data.

    Raises:
        ConfigError: It has no held-out table, as a front's has not.
    """
    found = result.to_dict() if hasattr(result, "to_dict") else result
    if found is None:
        return None
    if not isinstance(found, Mapping) or not {"best", "unpruned", "baselines", "verdict"} <= {
        *found
    }:
        raise ConfigError(
            f"push_to_hub: result: received {type(result).__name__} without a held-out table, "
            "allowed: what prunetune.search returned for one budget, or what search --json printed"
        )
    return found
