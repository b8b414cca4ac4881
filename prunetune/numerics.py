"""Arithmetic that is the same whatever modes of torch the caller has set."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_AUTOCASTING = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def exactly() -> Iterator[None]:
    """Compute in the number formats of the operands, and record no graph.

    Under ``torch.autocast`` a product of float32 tensors would be one of bfloat16, and near
    scores would change places. Also a decorator: ``@exactly()``.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.no_grad())
        for kind in _AUTOCASTING:
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        yield


def fitting(states: Tensor, module: Any) -> Tensor:
    """Return states in the number format of the weights that they are multiplied with.

    Autocast leaves states in another one, which a module does not take where it is off.

    Args:
        states: ``[..., d]``, any floating format.
        module: What takes them; one without plain floating weights (quantised) takes any.
    """
    weight = getattr(module, "weight", None)
    # One byte a number: quantised, and no format to compute in.
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1:
        return states.to(weight.dtype)
    return states
