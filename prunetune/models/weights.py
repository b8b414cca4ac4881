"""Where a model's files are: a folder, the local hub cache, or fetched once from the hub."""

import logging
from pathlib import Path

from prunetune.errors import ConfigError
from prunetune.hub.reasons import cause_of, reason_of
from prunetune.hub.uris import is_repo
from prunetune.models.described import CONFIG, INDEX, described, refuse_endless, refuse_unreadable
from prunetune.models.tensors import refuse_pointers

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 5.0
# No pickled weights: what is not listed is not fetched.
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``owner/name``."""
    return is_repo(name)


def existing(name: str) -> Path | None:
    """Return the path of this name where there is one."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such home, or a null character
        return None


def check_folder(folder: Path) -> Path:
    """Return the folder of a complete checkpoint.

    Raises:
        ConfigError: ``config.json`` or safetensors weights are missing, or not whole.
    """
    if existing(str(folder)) is None:
        raise ConfigError(f"model folder {folder} does not exist; check it, or use --model tiny")
    if not folder.is_dir():
        raise ConfigError(
            f"model {folder} is a file; allowed: tiny, an alias, a hub id or a folder"
        )
    refuse_endless(folder)
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"model folder {folder} has no config.json; give the folder that save_pretrained wrote"
        )
    refuse_pointers(folder)
    refuse_unreadable(folder)
    missing = _missing_weights(folder)
    if missing:
        raise ConfigError(
            f"model folder {folder} lacks {missing}; allowed: safetensors weights (pickled .bin "
            f"files are never loaded): convert with save_pretrained, or download again"
        )
    return folder


def _missing_weights(folder: Path) -> str | None:
    index = folder / INDEX
    if index.is_file():
        named = described(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
            return f"a readable {index.name}"
        return next((n for n in sorted(set(named.values())) if not (folder / n).is_file()), None)
    return None if any(folder.glob("*.safetensors")) else "model.safetensors"


def fetch(hub_id: str, revision: str | None, *, code: bool = False) -> tuple[Path, str]:
    """Return the folder and commit of a hub id's files: cached ones, or fetched if reachable.

    Args:
        hub_id: ``owner/name``.
        revision: Branch, tag or commit; by default the main branch.
        code: Fetch Python files too.

    Raises:
        ConfigError: The files are not on this machine and cannot be fetched.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cached = _cached(hub_id, revision)
    if cached is not None and not (code and not list(cached.glob("*.py"))):
        return cached, cached.name
    command = f"hf download {hub_id}" + (f" --revision {revision}" if revision else "")
    try:
        HfApi().model_info(hub_id, revision=revision, timeout=_PROBE_SECONDS)
        logger.info("fetching %s from the Hugging Face hub", hub_id)
        patterns = _FILES + (["*.py"] if code else [])
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConfigError(
            f"model {hub_id!r}{at} is not on the hub, or needs a licence and a login; check the "
            f"id, run: hf auth login, then: {command} (--model tiny works now)"
        ) from cause_of(error)
    except Exception as error:  # the HTTP library beneath huggingface_hub changes between releases
        raise ConfigError(
            f"weights of {hub_id!r} are not on this machine and cannot be fetched "
            f"({reason_of(error)}); with network run: {command}  --model tiny works now"
        ) from cause_of(error)
    return check_folder(folder), folder.name


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """Return the cached snapshot where it is complete; an interrupted download is not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
        return check_folder(folder)
    except (LocalEntryNotFoundError, ConfigError):
        return None
