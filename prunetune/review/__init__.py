"""Review: what people look at before they trust a config."""

from prunetune.review.overlay import Kept, StageKept, contact_sheet, kept_tokens

__all__ = ["Kept", "StageKept", "contact_sheet", "kept_tokens"]
