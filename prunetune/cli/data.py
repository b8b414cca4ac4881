"""``data``: check and inspect a calibration set."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AllowRemote, AsJson, ModelName, SkipBad, TemplateArg, at_least, verb
from prunetune.cli._flags import template_of
from prunetune.cli._loading import MaxPixels, MinPixels, Processor, Revision, processor_options
from prunetune.cli._output import Output
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.calibration import CalibrationSet

_SHOWN, _RATIO = 12, 200


@verb(
    "data",
    "prunetune data check pictures/",
    "prunetune data check requests.jsonl --model qwen2.5-vl-3b",
    "prunetune data check pictures/ --model qwen2.5-vl-3b --processor max_pixels=602112",
    "prunetune data show tiny --samples 5 --json",
)
def data(
    action: Annotated[str, typer.Argument(metavar="check|show", help="What to do.")],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="tiny, a folder, a .jsonl file or hf:ID.")
    ],
    model: ModelName = None,
    revision: Revision = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    processor: Processor = None,
    held_out: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Held-out data, if not a part of SOURCE.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N of the shuffled samples.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of split and order.")] = 0,
    template_arg: TemplateArg = None,
    allow_remote: AllowRemote = False,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Check a calibration set, or show its samples.

    check decodes every picture and prints counts, question types, sizes, the digest that a study
    records, and what was skipped. show prints the samples, too, in the order a study uses them.
    With --model its processor makes every prompt: what it refuses is named.
    """
    from prunetune.calibration import load_sides
    from prunetune.models.load import processor_of

    if action not in ("check", "show"):
        raise ConfigError(f"data: received {action!r}, allowed check or show")
    at_least("--samples", samples, 1)
    at_least("--seed", seed, 0)
    options = processor_options({"min_pixels": min_pixels, "max_pixels": max_pixels}, processor)
    if model is None and (options or revision):
        raise ConfigError("--processor and --revision go with --model, whose they are; add it")
    sides = load_sides(
        source,
        held_out,
        skip_bad=skip_bad,
        seed=seed,
        samples=samples,
        template=template_of(template_arg),
        allow_remote=allow_remote,
    )
    notes = list(sides[0].notes)
    if model is not None:
        sides = _processed(processor_of(model, revision=revision, options=options), sides, skip_bad)
    else:
        notes += _stretched(sides)
    named = dict(zip(("calibration", "held_out"), sides, strict=True))
    out = Output(as_json)
    parts = {name: _described(side) for name, side in named.items()}
    out.table(
        ("split", ">samples", ">images", ">answered", "sizes", "types", "digest"),
        [_row(name, part) for name, part in parts.items()],
        wrap="types",
    )
    for note in notes:
        out.line(f"note: {note}")
    skipped = [line for side in sides for line in side.skipped_names]
    for line in skipped[: _SHOWN if action == "check" else None]:
        out.line(f"skipped: {line}")
    if len(skipped) > _SHOWN and action == "check":
        out.line(f"skipped: and {len(skipped) - _SHOWN} more")
    payload: dict[str, Any] = {"source": source, "seed": seed, **parts, "skipped": len(skipped)}
    payload["notes"] = notes
    payload["skipped_names"] = skipped
    if action == "show":
        payload["samples"] = [
            {
                "split": name,
                "id": sample.id,
                "image_id": sample.image_id,
                "question": sample.question,
                "answer": sample.answer,
                "type": sample.type,
            }
            for name, side in named.items()
            for sample in side
        ]
        out.line()
        out.table(
            ("split", "id", "type", "question", "answer"),
            [
                (s["split"], s["id"], s["type"] or "-", _short(s["question"]), _short(s["answer"]))
                for s in payload["samples"]
            ],
            wrap="question",
        )
    out.finish(payload)


def _stretched(sides: "tuple[CalibrationSet, CalibrationSet]") -> list[str]:
    """Return a line on pictures that some processors refuse, where no model was named."""
    found = {
        sample.place or sample.id: image.size
        for side in sides
        for sample in side
        for image in sample.images
        if max(image.size) > _RATIO * min(image.size)
    }
    if not found:
        return []
    name, size = next(iter(found.items()))
    return [
        f"{len(found)} picture(s) of more than {_RATIO} to 1, which some processors (Qwen-VL's) "
        f"refuse, the first {name} of {size[0]}x{size[1]}; data check --model NAME tells"
    ]


def _processed(
    processor: Any, sides: "tuple[CalibrationSet, CalibrationSet]", skip_bad: bool
) -> "tuple[CalibrationSet, CalibrationSet]":
    """Make every prompt with a model's processor; its weights are not read."""
    from prunetune.calibration import encode, without_refused

    if skip_bad:
        one, two = (without_refused(processor, side) for side in sides)
        return one, two
    for side in sides:
        for sample in side:
            encode(processor, [sample])
    return sides


def _described(side: "CalibrationSet") -> dict[str, Any]:
    sizes: Counter[str] = Counter()
    seen = set()
    for sample in side:
        if sample.image_id not in seen:
            seen.add(sample.image_id)
            sizes.update(f"{image.width}x{image.height}" for image in sample.images)
    return {
        "samples": len(side),
        "images": len(seen),
        "answered": sum(sample.answer is not None for sample in side),
        "types": dict(Counter(sample.type or "none" for sample in side).most_common()),
        "sizes": dict(sizes.most_common()),
        "digest": side.digest(),
    }


def _row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
    return (
        name.replace("_", "-"),
        str(part["samples"]),
        str(part["images"]),
        str(part["answered"]),
        _counts(part["sizes"], 3),
        _counts(part["types"], 8),
        part["digest"][:12],
    )


def _counts(counts: dict[str, int], most: int) -> str:
    shown = [f"{key} {count}" for key, count in list(counts.items())[:most]]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return ", ".join([*shown, *more]) or "-"


def _short(text: str | None, width: int = 60) -> str:
    flat = " ".join((text or "-").split())
    return flat if len(flat) <= width else f"{flat[: width - 3]}..."
