"""What ``verify --engine vllm`` and ``bench --engine vllm`` do and print."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from prunetune.cli._loading import Loading
from prunetune.cli._output import Output, number, percent
from prunetune.cli.progress import progress
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.calibration import Sample
    from prunetune.config import PruningConfig
    from prunetune.deploy.verify import Splits
    from prunetune.deploy.vllm_bench import Served
    from prunetune.deploy.vllm_verify import InVllm

ENGINES = ("transformers", "vllm")


def check_runs(origin: str, config: "PruningConfig") -> None:
    """Refuse a config that vLLM cannot run, and a machine without vLLM.

    Raises:
        ConfigError: One line with what to do.
    """
    from prunetune.vllm.fits import problem
    from prunetune.vllm.jobs import installed

    if (reason := problem(config)) is not None:
        raise ConfigError(f"{origin} cannot run in vLLM: {reason}")
    if not installed():
        raise ConfigError(
            "--engine vllm: vllm is not installed; run: pip install 'prunetune[vllm]'"
        )


def prompts(splits: "Splits", *, held_out: bool) -> dict[str, list["Sample"]]:
    """Return what is asked, by split: calibration samples, and held-out ones where they are wanted.

    Raises:
        ConfigError: They are, and there are none.
    """
    found = {"calibration": list(splits.calibration)}
    if held_out:
        if splits.held_out is None:
            raise ConfigError(
                "--held-out-samples: the data has no held-out split; give one with --held-out"
            )
        found["held-out"] = list(splits.held_out)
    return found


def verify_there(
    out: Output,
    origin: str,
    config: "PruningConfig",
    name: str,
    splits: "dict[str, list[Sample]]",
    loading: Loading,
    match: str,
) -> None:
    """Compare both engines, print what came of it, and exit with 1 where they part."""
    from prunetune.deploy.vllm_verify import verify_in_vllm
    from prunetune.models import load_model

    revision = loading.get("revision")
    loaded = load_model(name, **loading)
    samples = [sample for split in splits.values() for sample in split]
    done, total = 0, 2 * len(samples)
    with progress() as show:

        def advance() -> None:
            nonlocal done
            done += 1
            show("prompts", done, total)

        dtype = str(loaded.model.dtype).removeprefix("torch.")
        result = verify_in_vllm(
            config,
            loaded,
            samples,
            revision=revision,
            dtype=dtype,
            match=match,
            advance=advance,
        )
    asked = {name: len(split) for name, split in splits.items()}
    _print(out, result, asked)
    found = {"passed": result.passed, **asdict(result), "asked": asked, "match": match}
    out.finish({"config": origin, "engine": "vllm", **found})
    if not result.passed:
        raise typer.Exit(1)


def _print(out: Output, result: "InVllm", asked: dict[str, int]) -> None:
    n = result.samples
    out.line(f"vLLM {result.versions['vllm']}, transformers {result.versions['transformers']}")
    said = " and ".join(f"{count} {name}" for name, count in asked.items())
    more = "" if len(asked) > 1 else "; --held-out-samples N asks held-out ones, too"
    out.line(f"prompts: {said} samples{more}")
    out.line()
    out.table(
        ("vLLM against transformers", ">same answers", ">of", ">tokens a prompt"),
        [
            ("unpruned", str(result.same_unpruned), str(n), number(result.unpruned_tokens, 1)),
            ("pruned, one by one", str(result.same), str(n), number(result.prompt_tokens, 1)),
            ("pruned, all at once", str(result.same_at_once), str(n), ""),
        ],
    )
    out.line()
    exact = "exact in every prompt" if result.counts_exact else "DIFFER"
    out.line(f"token counts: {exact}")
    out.line(
        f"kept sets: {result.same_sets} of {result.pictures} pictures the same, overlap "
        f"{100 * result.overlap:.1f}% on the mean (near ties fall either way)"
    )
    if result.right is not None:
        out.line(
            f"right answers in vLLM: {percent(result.right)} (unpruned "
            f"{percent(result.right_unpruned)}; pruned in transformers "
            f"{percent(result.right_in_transformers)})"
        )
    out.line("the engines agree" if result.passed else "the engines DO NOT agree")


def bench_there(
    out: Output,
    origin: str,
    config: "PruningConfig",
    name: str,
    concurrency: Sequence[int],
    options: dict[str, Any],
) -> None:
    """Measure requests a second and the time to the first token, and print both."""
    from prunetune.deploy.vllm_bench import bench_in_vllm

    result = bench_in_vllm(config, name, concurrency=concurrency, **options)
    requests = ", ".join(map(str, result.requests))
    out.line(
        f"vLLM {result.versions['vllm']}, {result.rounds} rounds of {requests} requests, fresh "
        "pictures"
    )
    out.line()
    out.table(
        (
            *("case", ">at once", ">requests/s", ">ratio", ">first token ms", ">ratio"),
            ">KV tokens a request",
        ),
        [_row(case) for case in result.cases],
    )
    out.line()
    for case in result.cases:
        if case.verdict:
            out.line(f"{case.name}, {case.concurrency} at once: {case.verdict}")
    out.finish({"config": origin, "engine": "vllm", **asdict(result)})


def _row(case: "Served") -> tuple[str, ...]:
    return (
        case.name,
        str(case.concurrency),
        number(case.rate.median, 2),
        number(case.rate_ratio, 2),
        f"{1e3 * case.first.median:.0f}",
        number(case.first_ratio, 2),
        number(case.prompt_tokens, 1),
    )
