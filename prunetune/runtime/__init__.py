"""The runtime: applies a pruning config to an unmodified Hugging Face model."""

from prunetune.runtime.apply import Handle, apply
from prunetune.runtime.trace import ForwardTrace, StageTrace

__all__ = ["ForwardTrace", "Handle", "StageTrace", "apply"]
