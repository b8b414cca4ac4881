"""What gpu.py measured, as Markdown."""

from dataclasses import dataclass
from typing import Any

from common import markdown


@dataclass(frozen=True)
class Row:
    """One case: times are medians in milliseconds.

    ``faster`` are ratios to unpruned: median, and the interval that the rounds give.
    """

    shape: str
    attn: str
    batch: int
    preset: str
    keep: float
    encode: float
    prefill: float
    prefill_faster: tuple[float, float, float]
    flops_faster: float
    decode: float
    decode_faster: tuple[float, float, float]
    kv_mib: float
    rounds: int


@dataclass(frozen=True)
class Scoring:
    """What one preset spends on choosing, as shares of the unpruned encoder and prefill."""

    shape: str
    attn: str
    batch: int
    preset: str
    of_prefill: float
    parts_ms: dict[str, float]


def table(rows: list[Row]) -> list[str]:
    """Return one Markdown table a shape, kernel and batch."""
    lines: list[str] = []
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.shape, row.attn, row.batch), []).append(row)
    for (shape, attn, batch), members in groups.items():
        lines += ["", f"### {shape}, {attn}, batch {batch} ({members[0].rounds} rounds)", ""]
        lines += markdown(
            (
                *("preset", "keep", "encode ms", "prefill ms", "prefill", "FLOPs promise"),
                *("decode ms/token", "decode", "KV MiB"),
            ),
            [
                (
                    f"`{row.preset}`" if row.keep < 1 else "*unpruned*",
                    f"{row.keep:g}",
                    f"{row.encode:.1f}",
                    f"{row.prefill:.1f}",
                    times(row.prefill_faster),
                    f"{row.flops_faster:.2f}x",
                    f"{row.decode:.2f}",
                    times(row.decode_faster),
                    f"{row.kv_mib:.1f}",
                )
                for row in members
            ],
        )
    return lines


def times(faster: tuple[float, float, float]) -> str:
    return f"{faster[0]:.2f}x ({faster[1]:.2f} to {faster[2]:.2f})"


def page(result: dict[str, Any], rows: list[Row], costs: list[Scoring]) -> list[str]:
    lines = [
        f"`{result['command']}` on {result['date']}: {result['card']}; torch {result['torch']}, "
        f"transformers {result['transformers']}, {result['dtype']}, random weights; "
        f"{result['text_tokens']} text tokens a prompt; {result['seconds']:.0f} s. "
        f"FlashAttention-2: {result['flash']}.",
        "",
        "Prefill: the language model's, scoring and dropping included. Faster than unpruned in the "
        "same round: median (interval that holds the median with 90% from 5 rounds on).",
        *table(rows),
        "",
        "### What choosing costs",
        "",
        "Seconds in the tower's attention, the query row, and scores with keep index and "
        "restoring, as a share of the unpruned prefill, at keep 0.1 (0.25 where that is least).",
        "",
    ]
    lines += markdown(
        ("shape", "kernel", "batch", "preset", "share", "tower ms", "row ms", "choose ms"),
        [
            (
                *(c.shape, c.attn, str(c.batch), f"`{c.preset}`", f"{100 * c.of_prefill:.2f}%"),
                *(f"{ms:.2f}" for ms in c.parts_ms.values()),
            )
            for c in costs
        ],
    )
    lines += ["", "### Decoding with a static cache (compiled on CUDA)", ""]
    lines += [f"- {name}: {text}" for name, text in result["static_decode"].items()]
    if result["not_measured"]:
        lines += ["", "Not measured:", *(f"- {text}" for text in result["not_measured"])]
    return lines
