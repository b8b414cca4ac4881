"""A stand-in for a second device, on a machine that has none.

Tensors there are wrappers that claim to be on ``meta`` (a kind that needs no driver) and hold their
numbers on the CPU. Operations that mix the two devices raise, as torch would.
"""

from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

HERE, AWAY = torch.device("cpu"), torch.device("meta")


class Away(torch.Tensor):
    """A tensor that claims to be on the second device."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=AWAY
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Away({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def numbers(value: Any) -> Any:
    """Return the numbers of a tensor; anything else as it is."""
    if isinstance(value, Away):
        return value.inner
    if isinstance(value, torch.Tensor) and value.device == AWAY:
        assert not value.numel(), "a tensor was made past the stand-in"
        return torch.empty(value.shape, dtype=value.dtype)
    return value


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the numbers; refuse it if its tensors are on both devices."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    # A number without dimensions may come from the CPU.
    devices = {t.device for t in tensors if t.dim() or t.device != HERE}
    wanted = kwargs.get("device")
    copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if len(devices) > 1 and not copies:
        raise RuntimeError(f"{function}: tensors are on {sorted(map(str, devices))}")
    place = torch.device(wanted) if wanted is not None else max(devices, key=str, default=HERE)
    if function is torch.ops.aten.copy_.default:
        place = args[0].device
    if "device" in kwargs:
        kwargs = {**kwargs, "device": HERE}
    kwargs.pop("pin_memory", None)
    inner_args, inner_kwargs = tree_map(numbers, (args, kwargs))
    out = function(*inner_args, **inner_kwargs)
    name = function._schema.name
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Away):
        return args[0]
    if place == HERE:
        return out
    return tree_map(lambda x: Away(x) if isinstance(x, torch.Tensor) else x, out)


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


@contextmanager
def spread(model: Any, modules: list[Any]):
    """Put modules on the second device; like accelerate's, their forwards move what they get."""
    for module in modules:
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, value in store.items():
                    if value is not None:
                        moved = Away(value.detach())
                        is_parameter = store is part._parameters
                        store[name] = (
                            torch.nn.Parameter(moved, requires_grad=False)
                            if is_parameter
                            else moved
                        )
        module.forward = moving(module.forward)
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        # What torch.tensor makes of data does not come through the mode.
        made = make(data, **options)
        return made if device is None else made.to(device)

    with _Devices(), mock.patch.object(torch, "tensor", tensor):
        yield


def moving(forward: Any) -> Any:
    """Return a forward whose tensors come to the second device."""

    def moved(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(
            lambda x: x.to(AWAY) if isinstance(x, torch.Tensor) else x, (args, kwargs)
        )
        return forward(*args, **kwargs)

    return moved
