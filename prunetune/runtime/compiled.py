"""What ``torch.compile`` makes of a model: it does not notice hooks that come or go."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def never_compiled(function: Function) -> Function:
    """Keep ``torch.compile`` out of a function of the prefill, where what is done depends on data.

    Decoding steps come to none of them, so that these are still compiled.
    """
    disable: Callable[[Function], Function] = torch.compiler.disable
    return disable(function)


def forget_compiled() -> None:
    """Drop all code that ``torch.compile`` compiled in this process; the next calls compile anew.

    A module's hooks do not guard it (``skip_nnmodule_hook_guards``): a decoding step that
    ``generate`` has compiled for a StaticCache would go on with masks of the full length.
    """
    torch._dynamo.reset_code_caches()
