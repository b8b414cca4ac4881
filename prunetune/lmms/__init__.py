"""A pruned model inside lmms-eval: an out-of-tree model, found by its entry point.

lmms-eval calls this at every start, so nothing is imported here until it is needed.
"""

from typing import Any

__all__ = ["manifest"]


def manifest() -> Any:
    """Return lmms-eval's manifest of the model ``prunetune``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="prunetune",
        chat_class_path="prunetune.lmms.model.Chat",
        # With --force_simple: the tasks that compare likelihoods have no messages.
        simple_class_path="prunetune.lmms.model.Simple",
    )
