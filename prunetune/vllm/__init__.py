"""A config inside vLLM: an out-of-tree plug-in, found by its entry point ``vllm.general_plugins``.

vLLM imports this file in every one of its processes, whether or not anything is to be pruned, and
starts without a plug-in whose import fails. So nothing is imported here until it is needed.
"""

import os

from prunetune.vllm.switch import ENVIRONMENT

__all__ = ["register"]


def register() -> None:
    """Tell vLLM of the pruning model class, if ``PRUNETUNE_CONFIG`` names a config.

    Called by vLLM in every process, possibly more than once; touches no device.

    Raises:
        PrunetuneError: The config cannot run in this vLLM. A server ends with status 2 and one
            line instead.
    """
    if os.environ.get(ENVIRONMENT):
        from prunetune.vllm.engine import switch_on

        switch_on()
