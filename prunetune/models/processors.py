"""Processors from a folder, also where torchvision, which video processors need, is missing."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prunetune.errors import ConfigError

VIDEO = "video_processor"
_SETTINGS = ("patch_size", "vision_feature_select_strategy")
_FILES = {
    "tokenizer": "tokenizer.json and tokenizer_config.json",
    "image_processor": "preprocessor_config.json (or processor_config.json)",
}

logger = logging.getLogger(__name__)


def load_processor(folder: Path, **options: Any) -> Any:
    """Load the processor of a model.

    Without torchvision transformers refuses every processor that also takes videos (Qwen-VL,
    InternVL, LLaVA-OneVision); then one of the same class is loaded that takes pictures only.

    Args:
        folder: With ``config.json`` and the processor's files.
        options: Of ``from_pretrained``.

    Raises:
        ConfigError: It has no tokenizer, or nothing for pictures.
    """
    processor = _loaded(folder, **options)
    missing = [kind for kind in _FILES if getattr(processor, kind, None) is None]
    if missing:
        files = " and ".join(_FILES[kind] for kind in missing)
        raise ConfigError(
            f"model folder {folder} gives a {type(processor).__name__} without "
            f"{' and '.join(missing)}; pictures and text need both: add {files}, which "
            "processor.save_pretrained writes"
        )
    unset = [name for name in _SETTINGS if getattr(processor, name, "") is None]
    if unset:
        raise ConfigError(
            f"model folder {folder}: the {type(processor).__name__} has no {' and no '.join(unset)}"
            ", without which it cannot count image tokens; add it to processor_config.json (what "
            "config.json says under vision_config, and at its top)"
        )
    return processor


def _loaded(folder: Path, **options: Any) -> Any:
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        config = type(AutoConfig.from_pretrained(folder, **options))
        kind = PROCESSOR_MAPPING.get(config, None)
        if kind is not None and VIDEO in kind.get_attributes():
            logger.info("torchvision is not installed: %s takes no videos", kind.__name__)
            return _pictures_only(kind).from_pretrained(folder, **options)
    return AutoProcessor.from_pretrained(folder, **options)


def _pictures_only(kind: Any) -> Any:
    """Return a subclass of a processor class without its video processor.

    The class's own ``__init__`` stays, for its other settings; what it hands to the base class, and
    what the base class loads for it, is without the video processor.
    """
    from transformers import ProcessorMixin

    names = kind.get_attributes()

    class PicturesOnly(ProcessorMixin):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            parts = dict(zip(names, args, strict=False)) | kwargs
            parts.pop(VIDEO, None)
            super().__init__(**parts)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in names if name != VIDEO]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            parts: list[Any] = super()._get_arguments_from_pretrained(*args, **kwargs)
            parts.insert(names.index(VIDEO), None)
            return parts

    # SmolVLM's chat template asks for these, also where there are no videos.
    absent = SimpleNamespace(num_frames=None, fps=None, model_input_names=[])
    body = {"__module__": kind.__module__, VIDEO: absent}
    return type(kind.__name__, (kind, PicturesOnly), body)
