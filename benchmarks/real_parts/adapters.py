"""Low-rank updates of linear layers (LoRA, arXiv:2106.09685), as torch's parametrizations."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 8
ADAPTED = ("q_proj", "v_proj", "gate_proj", "down_proj")


class LowRank(nn.Module):
    """Adds up @ down to a frozen (rows, columns) weight; zero at first."""

    def __init__(self, rows: int, columns: int, rank: int = RANK) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """(rows, columns) -> the updated weight."""
        return weight + self.up @ self.down


def adapted(language_model: nn.Module) -> list[nn.Module]:
    """The layers that get an update."""
    named = language_model.named_modules()
    return [m for n, m in named if isinstance(m, nn.Linear) and n.split(".")[-1] in ADAPTED]


def attach(language_model: nn.Module) -> None:
    """Adds updates in place; their values follow from the seed only."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    for layer in adapted(language_model):
        parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))
    torch.random.set_rng_state(generator)


def merge(language_model: nn.Module) -> None:
    """Makes the updated weights the layers' own, in place."""
    for layer in [m for m in language_model.modules() if parametrize.is_parametrized(m)]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def trained(model: Any) -> dict[str, nn.Parameter]:
    """What training moves, by name: the projector and the updates. All else is frozen."""
    found = {}
    for name, weight in model.named_parameters():
        moves = "multi_modal_projector" in name or name.endswith((".down", ".up"))
        weight.requires_grad_(moves)
        if moves:
            found[name] = weight
    return found
