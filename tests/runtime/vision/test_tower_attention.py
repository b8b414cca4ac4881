"""One row, or a map of tokens, of a tower's attention, against plain softmax over everything."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunetune.runtime.vision import attention
from prunetune.runtime.vision.attention import attention_map, attention_row


def heads(patches, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, 3, patches, 4, generator=random)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        for part in output if isinstance(output, tuple | list) else [output]:
            if isinstance(part, torch.Tensor) and part.untyped_storage().nbytes():
                self.elements = max(self.elements, part.numel())
        return output


@pytest.mark.parametrize("limit", [1 << 24, 64], ids=["whole", "chunked"])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("cls", [False, True])
def test_equals_softmax_over_everything(cls, group, limit, monkeypatch):
    monkeypatch.setattr(attention, "LIMIT", limit)
    query, key = heads(24 + cls)
    weights = (query @ key.transpose(2, 3)).softmax(-1).mean(1)
    patches = weights[:, int(cls) :, int(cls) :]
    tokens = patches.unflatten(2, (-1, group)).sum(3).unflatten(1, (-1, group)).mean(2)
    received = weights[:, 0, 1:].unflatten(1, (-1, group)).sum(2) if cls else tokens.mean(1)
    measured = attention_map(query, key, cls=cls, group=group)
    assert torch.allclose(measured, tokens, atol=1e-6)
    assert torch.allclose(attention_row(query, key, cls=cls, group=group), received, atol=1e-6)
    assert cls or torch.allclose(measured.sum(2), torch.ones(1), atol=1e-5)


def test_a_row_never_holds_the_whole_map(monkeypatch):
    """Pictures of Qwen-VL have 16,384 patches and more: their map would take a gigabyte."""
    monkeypatch.setattr(attention, "LIMIT", 1 << 13)
    query, key = heads(256)
    with Largest() as row:
        attention_row(query, key, cls=False, group=4)
    with Largest() as tokens:
        attention_map(query, key, cls=False, group=4)
    assert row.elements <= 1 << 13
    assert tokens.elements <= max(1 << 13, 2 * 64 * 64)
    monkeypatch.setattr(attention, "LIMIT", 1 << 24)
    with Largest() as whole:
        attention_row(query, key, cls=False, group=4)
    assert whole.elements >= 3 * 256 * 256
