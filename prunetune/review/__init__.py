"""Review: what people look at before they trust a config."""

from prunetune.review.overlay import Kept, StageKept, kept_tokens
from prunetune.review.sheet import Row, contact_sheet, sheet

__all__ = ["Kept", "Row", "StageKept", "contact_sheet", "kept_tokens", "sheet"]
