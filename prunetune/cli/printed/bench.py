"""What ``bench`` prints."""

from typing import TYPE_CHECKING, Any

from prunetune.cli._output import Output, number

if TYPE_CHECKING:
    from prunetune.deploy.bench import Bench, CaseResult


def print_bench(out: Output, result: "Bench", name: str | None, where: dict[str, Any]) -> None:
    """Print what a bench measured, for people."""
    """Print what a bench measured, for people."""
    out.line(
        f"{name}: {result.image_tokens} image + {result.text_tokens} text tokens, "
        f"{result.new_tokens} new, batch {result.batch_size}, {result.rounds} rounds; "
        f"{where['device']}, {where['dtype']}, {where['attn']}"
    )
    out.line()
    out.table(
        (
            *("case", ">tokens", ">retention", ">decode ms", ">total ms", ">ratio", ">KV MiB"),
            *(">KV ratio", ">peak MiB"),
        ),
        [_row(case) for case in result.cases],
    )
    out.line()
    out.table(
        (
            *("to the first token", ">encode ms", ">prefill ms", ">sum ms", ">ratio"),
            *(">tower GFLOPs", ">language GFLOPs", ">sum", ">FLOP ratio"),
        ),
        [_first_row(case) for case in result.cases],
    )
    out.line()
    for case in result.cases[1:]:
        if case.verdict is not None:
            out.line(f"{case.name}: {case.verdict.text}")
    exact = all(case.visual_slots == case.promised_slots for case in result.cases)
    kept = "to the token what the retentions say" if exact else "NOT WHAT THE RETENTIONS SAY"
    out.line(f"visual KV cache: {kept}")
    peak = "torch's allocations" if where["device"][:3] != "cpu" else "the whole process, resident"
    out.line(f"peak: {peak}; prefill: language model, scoring included; encode: image encoder")
    if all(case.name != "resized" for case in result.cases):
        out.line("resized: left out: pictures of any size have more tokens than the config leaves")


def _row(case: "CaseResult") -> tuple[str, ...]:
    from prunetune.deploy.memory import MIB

    return (
        case.name,
        str(case.image_tokens),
        number(case.mean_retention),
        "-" if case.decode is None else _ms(case.decode.median),
        _ms(case.total.median),
        number(case.total_ratio.median, 3),
        f"{case.kv_bytes / MIB:.1f}",
        number(case.kv_ratio),
        "-" if case.peak is None else f"{case.peak / MIB:.0f}",
    )


def _first_row(case: "CaseResult") -> tuple[str, ...]:
    flops = case.tower_flops, case.language_flops
    return (
        case.name,
        _ms(case.encode.median),
        _ms(case.prefill.median),
        _ms(case.first.median),
        number(case.first_ratio.median, 3),
        *(f"{count / 1e9:.4g}" for count in (*flops, sum(flops))),
        number(case.first_flops_ratio, 3),
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"
