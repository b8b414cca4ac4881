"""LLaVA-NeXT: any-resolution images, a newline after each row of the tiles."""

from typing import ClassVar

from prunetune.families.bases.anyres import AnyResolution


class LlavaNext(AnyResolution):
    """``LlavaNextForConditionalGeneration``."""

    model_type: ClassVar[str] = "llava_next"
