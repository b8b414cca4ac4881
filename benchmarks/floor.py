"""The least a trial could take: its suffix's FLOPs at this machine's matrix rate."""

import statistics
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

from prunetune.config import PruningConfig

ROWS = (32, 64, 128, 256, 512, 1024, 2048)


class Floor:
    """FLOPs of surviving suffixes, and the rate of the decoder's own matrices.

    The rate is measured at the heights that occur, on the weights of all decoder layers in turn, as
    a forward meets them (their median over the rounds): a product of two matrices that lie in the
    processor's cache already would flatter nobody but the floor.

    Args:
        evaluator: Of the trials.
        clock: Seconds.
    """

    def __init__(self, evaluator: Any, clock: Callable[[], float]) -> None:
        self._evaluator, self._clock = evaluator, clock
        layers = evaluator.family.layers
        self._weights = [self._linear(layer) for layer in layers]
        self._numbers = [sum(w.numel() for w in layer) for layer in self._weights]
        # Of the last layer's MLP and of the head only the last token's row is needed.
        self._mlp = sum(w.numel() for w in self._linear(layers[-1].mlp))
        self._head = evaluator.loaded.model.get_output_embeddings().weight.numel()
        config = evaluator.family.text_model.config
        self._queries = config.num_attention_heads * evaluator.family.layers[0].self_attn.head_dim
        self._rates: dict[int, list[float]] = {rows: [] for rows in ROWS}

    @torch.no_grad()
    def measure(self) -> None:
        """Time one pass over the weights of four layers at every height: one round."""
        for rows, rates in self._rates.items():
            inputs = {w.shape[1]: torch.randn(rows, w.shape[1]) for w in self._weights[0]}
            turn = len(rates) * 4
            some = [self._weights[(turn + k) % len(self._weights)] for k in range(4)]
            weights = [w for layer in some for w in layer]
            start = self._clock()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            spent = self._clock() - start
            rates.append(sum(2 * rows * w.numel() for w in weights) / spent)

    def rate(self, rows: float) -> float:
        """Return FLOP/s at a height, between the measured ones."""
        at = min(max(bisect_left(ROWS, rows), 1), len(ROWS) - 1)
        low, high = ROWS[at - 1], ROWS[at]
        part = min(max((rows - low) / (high - low), 0.0), 1.0)
        ends = [statistics.median(self._rates[r]) for r in (low, high)]
        return ends[0] + part * (ends[1] - ends[0])

    def seconds(self, config: PruningConfig, samples: int) -> float:
        """Return the floor of a config on the split's first samples, in the batches that ran."""
        total = 0.0
        for window in self._evaluator._windows():
            if window.start >= samples:
                break
            for part in self._evaluator._parts(config, window):
                total += self._part(config, part)
        return total

    def _part(self, config: PruningConfig, part: list[int]) -> float:
        lengths = [self._evaluator._lengths[index] for index in part]
        ends = [stage.layer for stage in config.stages[1:]] + [len(self._weights)]
        total = 0.0
        for stage, end in zip(config.stages, ends, strict=True):
            alive = [n.prompt - n.image + max(1, round(stage.retention * n.image)) for n in lengths]
            products = sum(2 * self._queries * m * (m + 1) for m in alive)
            for number in self._numbers[stage.layer : end]:
                total += (2 * number * sum(alive) + products) / self.rate(sum(alive))
        once = 2 * self._head * len(part) - 2 * self._mlp * (sum(alive) - len(part))
        return total + once / self.rate(sum(alive))

    @staticmethod
    def _linear(module: torch.nn.Module) -> list[torch.Tensor]:
        return [m.weight for m in module.modules() if isinstance(m, torch.nn.Linear)]
