"""What choosing a set costs: each selector, and the same choice made step by step over everything.

Processor time of one thread, so that other work on the machine does not count. Per selector: the
whole choice from bfloat16 states, the cosines alone (n x n x d, which all of them pay), the same
set chosen from the same matrix naively (cover: every candidate's gain at every step; dpp: the
whole kernel conditioned at every step; maxmin and mmr: the nearest of all kept ones at every
step), and its ratio to what is done instead. The two sets are compared.

    python benchmarks/selecting.py [--rounds 3] [--tiny]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import finish
from torch import Tensor

from prunetune.selectors import SELECTORS, SelectContext
from prunetune.selectors.base_covering import densely, most_covering
from prunetune.selectors.base_similarity import cosines, farthest_first
from prunetune.selectors.dpp import _greedy
from prunetune.tokens import grid_geometry

GRIDS = {400: (20, 20), 576: (24, 24), 2880: (48, 60), 8192: (64, 128)}
# Multiply-adds of a decoder layer of a 7B model a token, besides attention's n x n.
LAYERS, WIDE, INNER = 32, 4096, 11008


def image(n: int, width: int) -> SelectContext:
    """Forty clusters of states around a mean that all share."""
    dice = torch.Generator().manual_seed(0)
    centres = torch.randn(40, width, generator=dice)
    states = centres[torch.randint(40, (n,), generator=dice)]
    states = states + 0.7 * torch.randn(n, width, generator=dice)
    states = states + 2.0 * torch.randn(width, generator=dice)
    scores = torch.randn(n, generator=dice)
    return SelectContext(states.to(torch.bfloat16), scores, grid_geometry(*GRIDS[n]))


def naive_dpp(similarity: Tensor, weight: Tensor, steps: int) -> Tensor:
    """Condition the whole matrix on every choice."""
    left, order = similarity.clone(), []
    for _ in range(steps):
        gain = left.diagonal() * weight
        j = int(gain.index_fill(0, torch.tensor(order, dtype=torch.int64), -torch.inf).argmax())
        order.append(j)
        left -= torch.outer(left[:, j] / left[j, j], left[j])
    return torch.tensor(order)


def naive_farthest(similarity: Tensor, bonus: Tensor, first: Tensor, count: int) -> Tensor:
    """Look at all kept ones again at every step."""
    order, bonus = [int(first)], bonus.clone()
    while len(order) < count:
        bonus[order[-1]] = -torch.inf
        order.append(int((bonus - similarity[order].amax(0)).argmax()))
    return torch.tensor(order)


def pairs(ctx: SelectContext, count: int) -> dict[str, tuple[Callable[[], Tensor], ...]]:
    """Return, by selector, its loop and the naive one, on the same matrix."""
    similarity = cosines(ctx.features, ctx.features.float().mean(0))
    kernel = SELECTORS.get("cover")()._kernel(ctx) / len(ctx)
    rank = min(count, ctx.features.shape[1] - 1)
    flat, first = torch.ones(len(ctx)), ctx.scores.argmax()
    # Without weights the second choice is a tie of all that are nearly orthogonal to the first.
    weight = (0.5 * ctx.scores).exp()
    return {
        "cover": (
            lambda: most_covering(kernel, flat, count),
            lambda: densely(kernel, flat, count),
        ),
        "dpp": (
            lambda: _greedy(similarity, weight, rank),
            lambda: naive_dpp(similarity, weight, rank),
        ),
        "maxmin": (
            lambda: farthest_first(similarity, 0 * flat, first, count),
            lambda: naive_farthest(similarity, 0 * flat, first, count),
        ),
        "mmr": (
            lambda: farthest_first(similarity, ctx.scores, first, count),
            lambda: naive_farthest(similarity, ctx.scores, first, count),
        ),
    }


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the thread's processor time of a call, and what it returned."""
    start = time.thread_time()
    value = call()
    return time.thread_time() - start, value


def prefill(n: int) -> float:
    """Return the multiply-adds of a 7B prefill of ``n`` tokens."""
    return LAYERS * (n * (4 * WIDE**2 + 3 * WIDE * INNER) + 2 * n * n * WIDE)


def measure(n: int, width: int, share: float, rounds: int) -> list[dict[str, Any]]:
    """Time every selector at one size; naive loops of the largest only once."""
    ctx, count, out = image(n, width), int(n * share), []
    product = statistics.median(spent(lambda: cosines(ctx.features))[0] for _ in range(rounds))
    for name, (loop, naive) in pairs(ctx, count).items():
        selector = SELECTORS.get(name)()
        selector.order(ctx, min(count, 8))
        whole, mine, ratios, equal = [], [], [], []
        for again in range(rounds):
            whole.append(spent(lambda selector=selector: selector.order(ctx, count))[0])
            seconds, ours = spent(loop)
            mine.append(seconds)
            if again == 0 or n < 1000:
                slow, theirs = spent(naive)
                ratios.append(slow / seconds)
                equal.append(bool(torch.equal(ours, theirs[: len(ours)])))
        out.append(
            {
                "selector": name,
                "n": n,
                "d": width,
                "k": count,
                "seconds": round(statistics.median(whole), 4),
                "cosines": round(product, 4),
                "loop": round(statistics.median(mine), 4),
                "naive_over_loop": round(statistics.median(ratios), 1),
                "same": all(equal),
                "flops_share": round(n * n * width / prefill(n), 4) if width == WIDE else None,
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="the smallest size only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (
        [(400, 512)] if arguments.tiny else [(n, d) for n in (400, 576, 2880) for d in (512, WIDE)]
    )
    columns = ("seconds", "cosines", "loop", "naive_over_loop", "same", "flops_share")
    print("".join(f"{c:>16}" for c in ("selector", "n", "d", "k", *columns)))
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for n, width in sizes:
            for share in (0.1, 0.25):
                for row in measure(n, width, share, arguments.rounds):
                    print("".join(f"{row[c]!s:>16}" for c in row), flush=True)
                    rows.append(row)
    finish({"rows": rows})


if __name__ == "__main__":
    main()
