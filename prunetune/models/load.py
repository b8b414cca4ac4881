"""Models by name: aliases, hub ids, folders and the embedded ``tiny``."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

from prunetune.errors import ConfigError, PrunetuneError, UnsupportedModelError
from prunetune.messages import one_line
from prunetune.models.aliases import ALIASES
from prunetune.models.described import model_type_of
from prunetune.models.devices import attn_named, device_map_named, device_named, dtype_named
from prunetune.models.embedded import EMBEDDED, folder_of, is_embedded
from prunetune.models.fingerprint import fingerprint
from prunetune.models.options import check_options, with_options
from prunetune.models.processors import load_processor
from prunetune.models.tensors import refuse_unfit
from prunetune.models.weights import check_folder, existing, fetch, is_hub_id

__all__ = ["EMBEDDED", "LoadedModel", "Loading", "find_model", "load_model", "processor_of"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what a config records about it.

    Args:
        model: In evaluation mode, on its device.
        processor: Pads on the left.
        name: ``tiny``, a hub id or a folder.
        revision: Commit of the hub repository, where the weights came from one.
        fingerprint: See ``fingerprint``.
    """

    model: Any
    processor: Any
    name: str
    revision: str | None
    fingerprint: str


class Loading(TypedDict, total=False):
    """How a model is loaded, for callers that only hand it on: see ``load_model``."""

    dtype: Any
    device: Any
    device_map: Any
    attn: str | None


def load_model(
    name: str,
    *,
    dtype: Any = None,
    device: Any = None,
    device_map: Any = None,
    attn: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    processor: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a model and its processor.

    Args:
        name: ``tiny``, an alias, a hub id or a folder.
        dtype: A dtype or its name; by default the checkpoint's, and float32 for ``tiny``.
        device: By default CUDA where there is one, and the CPU for ``tiny``.
        device_map: Spreads the model over devices (accelerate): ``auto``, ``balanced``,
            ``balanced_low_0``, ``sequential``, or a mapping (also as JSON); excludes ``device``.
        attn: Attention implementation, e.g. ``sdpa`` or ``flash_attention_2``.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run Python code from the repository.
        processor: Options of the processor, e.g. ``{"max_pixels": 602112}``, in place of its own.

    Raises:
        ConfigError: The name is unknown, or the weights are not here and cannot be fetched, or
            transformers cannot load them as asked.
        UnsupportedModelError: This release has no family for the model.
    """
    if device is not None and device_map is not None:
        raise ConfigError(
            f"device={device!r} and device_map={device_map!r} exclude each other; give one"
        )
    check_options(processor or {})
    device_map, attn = device_map_named(device_map), attn_named(attn)
    folder, shown, commit = _locate(name, revision, trust_remote_code)
    embedded = is_embedded(name) or folder == EMBEDDED
    try:
        _refuse_unsupported(folder, shown)
        model, prepares = _load(
            folder,
            attn,
            processor or {},
            dtype=dtype_named(dtype if dtype is not None else ("float32" if embedded else "auto")),
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
        if device_map is None:
            model = model.to(device_named("cpu" if device is None and embedded else device))
    except PrunetuneError:
        raise
    except Exception as error:  # transformers raises errors of many packages for a bad checkpoint
        raise ConfigError(f"model {shown!r} cannot be loaded: {one_line(error)}") from error
    return LoadedModel(model.eval(), prepares, shown, commit, fingerprint(model.config))


def processor_of(
    name: str, *, revision: str | None = None, options: Mapping[str, Any] | None = None
) -> Any:
    """Load a model's processor without its weights.

    Args:
        name: ``tiny``, an alias, a hub id or a folder.
        revision: Branch, tag or commit of a hub id.
        options: Of the processor, e.g. ``{"max_pixels": 602112}``, in place of its own.

    Raises:
        ConfigError: The name is unknown, or the processor cannot be loaded.
        UnsupportedModelError: This release has no family for the model.
    """
    check_options(options or {})
    folder, shown, _ = _locate(name, revision, False)
    _refuse_unsupported(folder, shown)
    try:
        with _quiet():
            processor = load_processor(folder, local_files_only=True)
            processor = with_options(processor, options or {})
    except PrunetuneError:
        raise
    except Exception as error:  # as above
        raise ConfigError(f"model {shown!r} cannot be loaded: {one_line(error)}") from error
    processor.tokenizer.padding_side = "left"
    return processor


def _load(
    folder: Path, attn: str | None, pictures: Mapping[str, Any], **options: Any
) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText

    trust = {"trust_remote_code": options["trust_remote_code"], "local_files_only": True}
    if attn is not None:
        options["attn_implementation"] = attn
    with _quiet():
        processor = with_options(load_processor(folder, **trust), pictures)
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            # Refused below, with their names.
            ignore_mismatched_sizes=True,
            **options,
        )
    refuse_unfit(folder, found)
    processor.tokenizer.padding_side = "left"
    return model, processor


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars out of logs; on a terminal they stay."""
    from transformers.utils import logging as hf_logging

    hide = not sys.stderr.isatty() and hf_logging.is_progress_bar_enabled()
    if hide:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            hf_logging.enable_progress_bar()


def find_model(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Return a model's folder and its ``model_type``, without loading its weights.

    Raises:
        ConfigError: As ``load_model``.
        UnsupportedModelError: This release has no family for the model.
    """
    folder, shown, _ = _locate(name, revision, False)
    _refuse_unsupported(folder, shown)
    return folder, model_type_of(folder)


def _locate(name: str, revision: str | None, code: bool) -> tuple[Path, str, str | None]:
    """Return the folder of a model, the name it goes by, and the commit if it is from the hub."""
    known = {alias.alias: alias for alias in ALIASES}
    if is_embedded(name):
        if revision is not None:
            raise ConfigError(
                f"revision is {revision!r}; {name!r} is embedded and has none: leave it out"
            )
        return folder_of(name, "model"), name, None
    if name in known:
        alias = known[name]
        if not alias.supported:
            raise UnsupportedModelError(
                f"model {name!r} is {alias.status}; supported: {', '.join(_supported())}"
            )
        return _from_hub(alias.hub_id, revision, code)
    if not name:
        raise ConfigError(
            f"model name is empty; allowed: {', '.join(_supported())}, a hub id or a folder"
        )
    if (path := existing(name)) is not None or name.startswith((".", "~", "/")):
        return check_folder(path or Path(name)), name, None
    if is_hub_id(name):
        return _from_hub(name, revision, code)
    near = get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"unknown model {name!r}; allowed: {', '.join(_supported())}, "
        f"a hub id owner/name or a folder{hint}"
    )


def _from_hub(hub_id: str, revision: str | None, code: bool) -> tuple[Path, str, str]:
    folder, commit = fetch(hub_id, revision, code=code)
    return folder, hub_id, commit


def _supported() -> list[str]:
    return [alias.alias for alias in ALIASES if alias.supported]


def _refuse_unsupported(folder: Path, shown: str) -> None:
    """Refuse an unknown family before gigabytes of weights are read."""
    from prunetune.families import FAMILIES

    kind = model_type_of(folder)
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"model {shown!r} has model_type {kind!r}; supported: {', '.join(FAMILIES)}"
        )
