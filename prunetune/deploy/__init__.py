"""Deployment: what is checked and measured on the way there."""

from prunetune.deploy.meter import SplitScores
from prunetune.deploy.selftest import Figure, SelfTest, self_test
from prunetune.deploy.verify import Splits, Verification, load_splits, verify

__all__ = [
    "Figure",
    "SelfTest",
    "SplitScores",
    "Splits",
    "Verification",
    "load_splits",
    "self_test",
    "verify",
]
