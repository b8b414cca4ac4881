"""``bench``: what pruning pays at a shape, measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import (
    AsJson,
    ModelName,
    Threads,
    at_least,
    one_of,
    verb,
)
from prunetune.cli._flags import share_of
from prunetune.cli._loading import Keep, Loading, model_named
from prunetune.cli._output import Output, note
from prunetune.cli._vllm import ENGINES, bench_there, check_runs
from prunetune.cli.printed.bench import print_bench
from prunetune.cli.progress import progress
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.deploy.bench import Bench
    from prunetune.deploy.subject import Subject
    from prunetune.families import Family


@verb(
    "bench",
    "prunetune bench tiny.prune.json --rounds 3",
    "prunetune bench --preset topv --keep 0.1 --shape mid --rounds 5",
    "prunetune bench tiny.prune.json --engine vllm --concurrency 1,8",
    "prunetune bench --preset topv --keep 0.1 --shape llava-next-7b --batch-size 8 --json",
)
def bench(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="A config file, or --preset.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A preset in place of CONFIG.")
    ] = None,
    keep: Keep = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Random weights, no download: llava-next-7b, llava-1.5-7b, mid, mid-qwen.",
        ),
    ] = None,
    model: ModelName = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Text tokens of a prompt.  [default: 64; a model's own]"),
    ] = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to generate.")] = 32,
    images: Annotated[int, typer.Option(metavar="N", help="Pictures a prompt.")] = 1,
    image_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Of a picture.  [default: the shape's]")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Prompts at once.")] = 1,
    rounds: Annotated[int, typer.Option(metavar="N", help="Interleaved rounds.")] = 7,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="vllm: requests a second of vLLM instead.")
    ] = "transformers",
    concurrency: Annotated[
        str, typer.Option(metavar="A,B", help="With --engine vllm: requests at once.")
    ] = "1,8,32",
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Measure time to first token, decode, memory and KV cache: unpruned, pruned, and rivals.

    Rivals are uniform at the same budget, and smaller pictures with as many tokens (resized).

    Times are medians of interleaved rounds; ratios and the verdict come from the rounds' own
    ratios. The model is the config's own unless --model or --shape names another.
    """
    for flag, value in (
        ("--new-tokens", new_tokens),
        ("--images", images),
        ("--batch-size", batch_size),
        ("--rounds", rounds),
        ("--prompt-tokens", prompt_tokens),
    ):
        at_least(flag, value, 1)
    one_of("--engine", engine, ENGINES)
    if engine == "vllm":
        if config is None or shape:
            raise ConfigError(
                "--engine vllm: received a preset or a shape, allowed a config file and a model "
                "that vLLM can load; give CONFIG, and --model if it is not the config's own"
            )
        from prunetune.config import PruningConfig

        pruning = PruningConfig.load(config)
        check_runs(config, pruning)
        options = {
            "rounds": rounds,
            "new_tokens": new_tokens,
            "size": _size(image_size) or (672, 672),
            "dtype": loading["dtype"] or "auto",
        }
        name = model_named(config, pruning.model, model, loading)
        options["revision"] = loading["revision"]
        return bench_there(Output(as_json), config, pruning, name, _counts(concurrency), options)
    if shape:
        _check_shape(shape, model, loading)
    from prunetune.cli._environment import set_threads
    from prunetune.deploy.shapes import shape_named
    from prunetune.deploy.subject import Asked, Wanted, loaded_subject, random_subject

    set_threads(threads)
    asked = Asked(batch_size, images, prompt_tokens, new_tokens, _size(image_size))
    wanted = Wanted(config, preset, share_of("--keep", keep))
    with _memory_told(batch_size, images):
        if shape:
            how = {name: loading[name] for name in ("dtype", "device", "attn")}
            subject = random_subject(wanted, asked, shape_named(shape), tell=note, **how)
        else:
            subject = loaded_subject(wanted, asked, model, **loading)
        result = _measured(subject, new_tokens, rounds)
    out = Output(as_json)
    name = shape or model or subject.config.model.name
    where = _where(subject.family)
    print_bench(out, result, f"{name}, {config or preset}", where)
    if subject.note:
        out.line(f"note: {subject.note}")
    out.finish(
        {
            "config": config or preset,
            "note": subject.note,
            "shape": shape,
            "model": None if shape else name,
            "model_type": subject.config.model.model_type,
            **where,
            **asdict(result),
            "verdict": vars(result.cases[1].verdict),
        }
    )


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"--concurrency: received {text!r}, allowed whole numbers with commas between, e.g. "
            "1,8,32"
        )
    return [int(part) for part in parts]


def _check_shape(shape: str, model: str | None, loading: Loading) -> None:
    if model:
        raise ConfigError(
            f"--shape {shape} and --model {model} exclude each other; give one of them"
        )
    if loading["device_map"] or loading["revision"]:
        raise ConfigError("--device-map and --revision are for --model; --shape loads no weights")
    if loading["processor"]:
        raise ConfigError(
            "--processor, --min-pixels and --max-pixels are for --model; --shape has no processor: "
            "say --image-size"
        )


@contextmanager
def _memory_told(batch_size: int, images: int) -> Iterator[None]:
    """Say what to lower where memory runs out."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError" and not isinstance(error, MemoryError):
            raise
        raise ConfigError(
            f"out of memory with --batch-size {batch_size} --images {images}; lower them or "
            "--prompt-tokens, or use --dtype bfloat16"
        ) from None


def _measured(subject: "Subject", new_tokens: int, rounds: int) -> "Bench":
    from prunetune.deploy.bench import bench as measure

    done, total = 0, (3 + len(subject.more) + (subject.own is not None)) * (rounds + 1)
    with progress() as show:

        def advance() -> None:
            nonlocal done
            done += 1
            show("runs", done, total)

        return measure(
            subject.family,
            subject.config,
            subject.request,
            new_tokens=new_tokens,
            rounds=rounds,
            own=subject.own,
            more=subject.more,
            advance=advance,
        )


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and (width or height).isdecimal()):
        raise ConfigError(f"--image-size: received {text!r}, allowed HxW in pixels, e.g. 672x672")
    size = int(height), int(width or height)
    if not all(1 <= side <= 8192 for side in size):
        raise ConfigError(f"--image-size: received {text!r}, allowed sides of 1 to 8192")
    return size


def _where(family: "Family") -> dict[str, Any]:
    """Return what the measurement ran on."""
    import torch
    import transformers

    from prunetune.models.devices import device_of, device_shown

    return {
        "device": device_shown(device_of(family.model)),
        "dtype": str(family.model.dtype).removeprefix("torch."),
        "attn": str(family.text_model.config._attn_implementation),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
