"""The least a trial could take: its suffix's FLOPs at this machine's matrix rate."""

import statistics
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

from prunetune.config import PruningConfig
from prunetune.measure.batching import can_share, windows, with_mates

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
        total, inner = 0.0, self._evaluator
        shares = inner.shares and can_share(inner.family, config)
        done: set[int] = set()
        for number, window in enumerate(windows(len(inner.samples), inner.batch_size)):
            if window.start >= samples:
                break
            due = [index for index in window if index not in done]
            if shares and number:
                due = with_mates(due, done, inner.full.lengths, inner.full.mates)
            done.update(due)
            for rows in inner._parts(config, inner.full, due, shares):
                total += self._part(config, rows)
        return total

    def _part(self, config: PruningConfig, rows: list[list[int]]) -> float:
        sizes = self._evaluator.full.lengths
        texts = [
            sizes[row[0]].shared - sizes[row[0]].image
            + sum(sizes[index].prompt - sizes[index].shared for index in row)
            for row in rows
        ]  # fmt: skip
        images = [sizes[row[0]].image for row in rows]
        ends = [stage.layer for stage in config.stages[1:]] + [len(self._weights)]
        total = 0.0
        for stage, end in zip(config.stages, ends, strict=True):
            alive = [t + max(1, round(stage.retention * n)) for t, n in zip(texts, images)]
            products = sum(2 * self._queries * m * (m + 1) for m in alive)
            for number in self._numbers[stage.layer : end]:
                total += (2 * number * sum(alive) + products) / self.rate(sum(alive))
        asked = sum(len(row) for row in rows)
        once = 2 * self._head * asked - 2 * self._mlp * (sum(alive) - asked)
        return total + once / self.rate(sum(alive))

    @staticmethod
    def _linear(module: torch.nn.Module) -> list[torch.Tensor]:
        return [m.weight for m in module.modules() if isinstance(m, torch.nn.Linear)]
