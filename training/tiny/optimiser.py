"""fp32 master weights behind bf16 compute copies, averaged over processes, saved whole."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunetune.files import appearing

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.05


class Optimiser:
    """AdamW on fp32 masters of named weights; gradients come from their copies in any dtype."""

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        rate: float,
        slow: float,
        average: float = 0.0,
    ) -> None:
        """Keeps fp32 copies of the weights.

        Args:
            named: weights that compute, by name.
            rate: learning rate.
            slow: its factor for the vision tower.
            average: decay of a running average of the weights (0: none kept).
        """
        self.names = [name for name, _ in named]
        self.copies = [weight for _, weight in named]
        self.masters = [weight.detach().float().clone() for weight in self.copies]
        self.decay = average
        self.averages = [master.clone() for master in self.masters] if average else []
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            own_rate = rate * (slow if "vision" in name else 1.0)
            decay = WEIGHT_DECAY if master.ndim > 1 and "embed" not in name else 0.0
            groups.setdefault((own_rate, decay), []).append(master)
        self.adamw = torch.optim.AdamW(
            [
                {"params": members, "lr": key[0], "weight_decay": key[1], "full": key[0]}
                for key, members in groups.items()
            ],
            betas=BETAS,
            foreach=True,
        )

    def step(self, factor: float, clip: float = 1.0) -> float:
        """Averages gradients over processes and steps; returns their norm (not finite: skipped)."""
        flat = torch.cat(
            [
                (torch.zeros_like(c) if c.grad is None else c.grad).float().flatten()
                for c in self.copies
            ]
        )
        for copy in self.copies:
            copy.grad = None
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        norm = flat.norm().item()
        if norm != norm or norm == float("inf"):
            return norm
        if norm > clip:
            flat *= clip / norm
        parts = flat.split([master.numel() for master in self.masters])
        for master, part in zip(self.masters, parts, strict=True):
            master.grad = part.view_as(master)
        for group in self.adamw.param_groups:
            group["lr"] = group["full"] * factor
        self.adamw.step()
        if self.averages:
            torch._foreach_lerp_(self.averages, self.masters, 1 - self.decay)
        self.push()
        return norm

    @torch.no_grad()
    def push(self) -> None:
        """Copies the masters to the weights that compute."""
        for copy, master in zip(self.copies, self.masters, strict=True):
            copy.copy_(master)

    def save(self, path: Path, progress: dict[str, float]) -> None:
        """Writes weights, moments and progress; a file appears whole or not at all.

        The running average goes to ``average.safetensors`` beside it.
        """
        tensors = {}
        for name, master in zip(self.names, self.masters, strict=True):
            tensors[name] = master
            for key in ("exp_avg", "exp_avg_sq"):
                if key in self.adamw.state[master]:
                    tensors[f"{key}/{name}"] = self.adamw.state[master][key]
        _write(path, tensors, progress)
        if self.averages:
            averaged = dict(zip(self.names, self.averages, strict=True))
            _write(path.with_name("average.safetensors"), averaged, progress)

    def load(self, path: Path) -> dict[str, float]:
        """Restores what `save` wrote; returns the progress."""
        with safe_open(path, "pt") as stored:
            progress: dict[str, float] = json.loads(stored.metadata()["progress"])
            for name, master in zip(self.names, self.masters, strict=True):
                if name not in stored.keys():  # a head that is newer than the run  # noqa: SIM118
                    continue
                master.copy_(stored.get_tensor(name))
                self.adamw.state[master] = {
                    "step": torch.tensor(float(progress["step"])),
                    "exp_avg": stored.get_tensor(f"exp_avg/{name}"),
                    "exp_avg_sq": stored.get_tensor(f"exp_avg_sq/{name}"),
                }
        averaged = path.with_name("average.safetensors")
        if self.averages and averaged.exists():
            with safe_open(averaged, "pt") as stored:
                for name, mean in zip(self.names, self.averages, strict=True):
                    if name in stored.keys():  # noqa: SIM118
                        mean.copy_(stored.get_tensor(name))
        self.push()
        return progress


def _write(path: Path, tensors: dict[str, Tensor], progress: dict[str, float]) -> None:
    with appearing(path) as beside:
        save_file(tensors, beside, metadata={"progress": json.dumps(progress)})
