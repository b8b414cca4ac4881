"""Deployment: what is checked and measured on the way there."""

from prunetune.deploy.meter import SplitScores
from prunetune.deploy.verify import Splits, Verification, load_splits, verify

__all__ = ["SplitScores", "Splits", "Verification", "load_splits", "verify"]
