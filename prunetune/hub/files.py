"""Files on the hub: fetched through its cache, and sent there in one commit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunetune.errors import ConfigError
from prunetune.files import read_plain
from prunetune.hub.reasons import cause_of, reason_of
from prunetune.hub.uris import Place

_SECONDS = 5.0
_SHOWN = 8


@dataclass(frozen=True)
class Pushed:
    """What was sent.

    Attributes:
        place: Of the config, at its commit.
        url: Of the commit or, where one was opened, of the pull request.
    """

    place: Place
    url: str


def fetch(
    place: Place,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, Place]:
    """Return a file's path in the cache, and its place at the commit that it is of.

    Without a network, or with ``HF_HUB_OFFLINE``, what is cached is taken.

    Args:
        place: Which file.
        token: Of the hub; by default the one that ``hf auth login`` keeps, or ``HF_TOKEN``.
        cache_dir: By default the hub's own.
        local_files_only: Look into the cache only.

    Raises:
        ConfigError: It is not there and cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with _explained(place):
        if not local_files_only:
            _reach(place, token, cache_dir)
        path = hf_hub_download(
            place.repo,
            place.file,
            revision=place.revision,
            repo_type=place.kind,
            token=token,
            cache_dir=cache_dir,
            etag_timeout=_SECONDS,
            local_files_only=local_files_only,
            library_name="prunetune",
        )
    return Path(path), place.at(Path(path).parents[place.file.count("/")].name)


def _reach(place: Place, token: str | bool | None, cache_dir: str | Path | None) -> None:
    """Fail in seconds where an uncached file cannot be reached; a download alone retries for 25."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    known = {"revision": place.revision, "repo_type": place.kind}
    cached = try_to_load_from_cache(place.repo, place.file, cache_dir=cache_dir, **known)
    if not isinstance(cached, str):
        url = hf_hub_url(place.repo, place.file, **known)
        get_hf_file_metadata(url, token=token, timeout=_SECONDS)


def send(
    place: Place,
    files: Mapping[str, bytes],
    *,
    message: str,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> Pushed:
    """Send files in one commit; the repository and the branch are made where there are none.

    Args:
        place: Of the config; its revision is a branch.
        files: Contents by path in the repository.
        message: Of the commit.
        private: Whether a new repository is private; None for its owner's default.
        create_pr: Open a pull request instead of writing to the branch.
        token: See ``fetch``.

    Raises:
        ConfigError: The hub did not take them; nothing of them is there then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, kind = HfApi(token=token, library_name="prunetune"), place.kind
    with _explained(place, sending=True):
        api.create_repo(place.repo, private=private, repo_type=kind, exist_ok=True)
        if place.revision is not None and not create_pr:
            api.create_branch(place.repo, branch=place.revision, repo_type=kind, exist_ok=True)
        done = api.create_commit(
            place.repo,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=message,
            revision=place.revision,
            create_pr=create_pr,
            repo_type=kind,
        )
    url = getattr(done, "pr_url", None) if create_pr else None
    return Pushed(place.at(done.oid), str(url or done.commit_url))


def text_there(place: Place, file: str, *, token: str | bool | None = None) -> str:
    """Return the text of another file of a repository; empty where there is none yet.

    Raises:
        ConfigError: The hub cannot be asked.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with _explained(place, sending=True):
        api = HfApi(token=token)
        if not api.repo_exists(place.repo, repo_type=place.kind):
            return ""
        if not api.file_exists(place.repo, file, repo_type=place.kind, revision=place.revision):
            return ""
        path = hf_hub_download(
            place.repo, file, revision=place.revision, repo_type=place.kind, token=token
        )
        return read_plain(Path(path)).decode("utf-8", "replace")


@contextmanager
def _explained(place: Place, *, sending: bool = False) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the HTTP library beneath huggingface_hub changes between releases
        raise ConfigError(_line(place, error, sending)) from cause_of(error)


def _line(place: Place, error: Exception, sending: bool) -> str:
    from huggingface_hub import constants, errors

    refused = ("cannot send to" if sending else "cannot read") + f" {place}:"
    login = "log in with: hf auth login (or set HF_TOKEN)"
    if isinstance(error, errors.GatedRepoError):
        return f"{refused} the repository needs a licence; accept it on its page, and {login}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{refused} the hub has no repository {place.repo!r}, or it is private; check the "
            f"name, or {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{refused} there is no revision {place.revision!r}; check the branch, tag or commit"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return f"{refused} HF_HUB_OFFLINE is set{'' if sending else ', and it is not cached'}"
        return f"{refused} it is not in the hub's cache, and nothing else was to be looked at"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{refused} the repository has no such file{_others(place)}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return f"{refused} the hub cannot be reached ({reason_of(error)}); check the network"
    if status in (401, 403):
        return f"{refused} the hub refuses it ({status}); check your rights there, and {login}"
    return f"{refused} {reason_of(error)}; check the address, or {login}"


def _others(place: Place) -> str:
    """Say which JSON files there are instead."""
    from huggingface_hub import HfApi

    try:
        known = HfApi().list_repo_files(place.repo, revision=place.revision, repo_type=place.kind)
    except Exception:  # the message is about the file that was asked for
        return "; check its name"
    names = [name for name in known if name.endswith(".json")]
    more = ", ..." if len(names) > _SHOWN else ""
    return f"; its JSON files: {', '.join(names[:_SHOWN]) or 'none'}{more}"
