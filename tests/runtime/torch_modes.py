"""What a process can set in torch, to run a test under."""

from contextlib import contextmanager

import pytest
import torch

from prunetune.families.bases import anyres
from prunetune.scorers import coverage


@contextmanager
def setting(setter, value, before):
    setter(value)
    try:
        yield
    finally:
        setter(before)


def default(dtype):
    return lambda: setting(torch.set_default_dtype, dtype, torch.float32)


MODES = {
    "bfloat16": default(torch.bfloat16),
    "float16": default(torch.float16),
    "float64": default(torch.float64),
    "device": lambda: setting(torch.set_default_device, "meta", None),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
}
CASTS = {
    "autocast-bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast-float16": lambda: torch.autocast("cpu", dtype=torch.float16),
}
modes = pytest.mark.parametrize("mode", [*MODES])
every_mode = pytest.mark.parametrize("mode", [*MODES, *CASTS])


def entered(mode):
    return (MODES | CASTS)[mode]()


def forget():
    """Drop tables that are made once, so that they are made under a mode and serve on after it."""
    for table in (anyres.pooling_matrix, anyres._coordinates, coverage._tables):
        table.cache_clear()


def identical(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
