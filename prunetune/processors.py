"""Processors from a folder, also where torchvision, which video processors need, is missing."""

import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def load_processor(folder: Path, **options: Any) -> Any:
    """Load the processor of a model.

    Without torchvision transformers refuses every processor that also takes videos (Qwen-VL,
    InternVL, LLaVA-OneVision); then one of the same class is loaded that takes pictures only.

    Args:
        folder: With ``config.json`` and the processor's files.
        options: Of ``from_pretrained``.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        config = type(AutoConfig.from_pretrained(folder, **options))
        kind = PROCESSOR_MAPPING.get(config, None)
        if kind is not None and "video_processor" in kind.get_attributes():
            logger.info("torchvision is not installed: %s takes no videos", kind.__name__)
            return _pictures_only(kind).from_pretrained(folder, **options)
    return AutoProcessor.from_pretrained(folder, **options)


def _pictures_only(kind: Any) -> Any:
    """Return a subclass of a processor class without its video processor.

    Transformers reads off the signature of ``__init__`` what parts a processor has.
    """

    def init(
        self: Any,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: Any = None,
        **kwargs: Any,
    ) -> None:
        kind.__init__(
            self,
            image_processor=image_processor,
            tokenizer=tokenizer,
            chat_template=chat_template,
            **kwargs,
        )

    return type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})
