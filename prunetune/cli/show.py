"""``show``: the tokens a config keeps of a picture."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AsJson, ModelName, Threads, verb
from prunetune.cli._loading import (
    Keep,
    Loading,
    Preset,
    model_named,
    prepare_pictures,
    wanted_config,
)
from prunetune.cli._output import Output
from prunetune.errors import ConfigError, DataError
from prunetune.files import read_plain
from prunetune.hub.uris import is_uri

if TYPE_CHECKING:
    from prunetune.review.compare.sides import Side
    from prunetune.review.pictures.overlay import Kept
    from prunetune.review.pictures.sheet import Row

_QUESTION = "Describe the image."
_NEW_TOKENS = 24
_MOST = 32
_LONGEST = {"WEBP": 16383, "JPEG": 65500}
"""Pixels of a side that a format, and its encoder, know."""
_TARGET = "A config file, STUDY:N (a trial), or a study (its best trial)."


@verb(
    "show",
    "prunetune show tiny.prune.json photo.jpg -o kept.png",
    "prunetune show tiny.prune.json photo.jpg --question 'what color is the square ?'",
    "prunetune show tiny.prune.json a.jpg b.jpg --scores",
    "prunetune show --preset topv --keep 0.25 --model tiny photo.jpg",
    "prunetune show new.prune.json photo.jpg --against old.prune.json --terminal",
)
def show(
    config: Annotated[
        str, typer.Argument(metavar="[CONFIG]", help=f"{_TARGET} Left out with --preset.")
    ],
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help=f"Pictures, {_MOST} at most.")
    ] = None,
    preset: Preset = None,
    keep: Keep = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=f"Asked of every picture.  [default: {_QUESTION}]"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Show another config beside it.")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Show each stage's scores as a heat map.")
    ] = False,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Print here; a file only with --output.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="[default: IMAGE-kept.png here]"),
    ] = None,
    model: ModelName = None,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Draw pictures stage by stage: kept tokens clear, dropped ones grey and hatched.

    Thumbnail and any-resolution tiles are drawn apart, since they are different tokens. With
    --against, a last column shows which tokens only one config keeps. With a question, the
    answers with and without pruning are printed too.
    """
    images = list(images or ())
    if preset is not None:
        # There is no CONFIG: what stands in its place is a picture.
        images, config = [config, *images], preset
    if not 1 <= len(images) <= _MOST:
        raise ConfigError(f"IMAGE: received {len(images)}, allowed 1 to {_MOST} on one sheet")
    names = [config, *([against] if against is not None else [])]
    own = _preset(preset, keep, model, loading) if preset is not None else _side(config, keep)
    sides = [own, *(_side(name) for name in names[1:])]
    configs = [side.config for side in sides]
    pictures = [_read(image) for image in images]
    target = None if terminal and output is None else _target(output, images)
    name = model_named(config, configs[0].model, model, loading)
    prepare_pictures(sides[0].processor, loading)
    from prunetune.cli._environment import set_threads
    from prunetune.models import load_model
    from prunetune.review.pictures.overlay import kept_tokens
    from prunetune.review.pictures.sheet import Row, sheet

    set_threads(threads)
    loaded = load_model(name, **loading)
    asked = question or _QUESTION
    rows = [
        Row(
            Path(path).name if len(images) > 1 or terminal else "",
            picture,
            *(kept_tokens(loaded, pruning, picture, asked) for pruning in configs),
        )
        for path, picture in zip(images, pictures)
    ]
    shown = [_shown(name) for name in names]
    if target is not None:
        notes = [f"{letter}: {name}" for letter, name in zip("AB", shown)] if against else []
        _save(sheet(rows, _title(shown, images, question), notes, scores=scores), target)
    answers = [
        _answers(loaded, configs, picture, question) if question else None for picture in pictures
    ]
    out = Output(as_json)
    if terminal and not as_json:
        _print_pictures(rows, scores)
    for path, row, answer in zip(images, rows, answers):
        if len(images) > 1:
            out.line(f"{Path(path).name}:")
        _print_counts(out, row, quiet=terminal)
        if answer is not None:
            out.line(", ".join(f"{key}: {value!r}" for key, value in answer.items()))
    if target is not None:
        out.line(f"picture: {target}")
    described = [_described(*parts) for parts in zip(images, rows, answers)]
    out.finish({"picture": target and str(target), "configs": shown, "images": described})


def _preset(preset: str, keep: str | None, model: str | None, loading: Loading) -> "Side":
    from prunetune.review.compare.sides import Side

    return Side(preset, wanted_config(None, preset, keep, model, loading), {})


def _side(name: str, keep: str | None = None) -> "Side":
    if keep is not None:
        raise ConfigError(f"--keep: received {keep} with {name}, allowed with --preset only")
    from prunetune.cli._environment import quieten_optuna
    from prunetune.review.compare.sides import is_study, read_side

    if is_study(name):
        quieten_optuna()
    return read_side(name)


def _shown(name: str) -> str:
    """Return what a config is called on a sheet: no folders, no passwords."""
    if is_uri(name):
        return name
    if "://" in name:
        from prunetune.secrets import redact

        return redact(name)
    return name.rstrip("/").rpartition("/")[2] or name


def _title(configs: list[str], images: list[str], question: str | None) -> str:
    on = Path(images[0]).name if len(images) == 1 else f"{len(images)} pictures"
    return f"{' against '.join(configs)} on {on}" + (f": {question}" if question else "")


def _target(output: str | None, images: list[str]) -> Path:
    target = Path(output) if output else Path(f"{Path(images[0]).stem}-kept.png")
    if any(Path(image).resolve() == target.resolve() for image in images):
        raise ConfigError(
            f"--output: received {str(target)!r}, which is a picture to show; allowed another place"
        )
    if _kind(target) not in ("PNG", "JPEG", "WEBP"):
        raise ConfigError(f"--output: received {str(target)!r}, allowed .png, .jpg or .webp")
    return target


def _kind(target: Path) -> str | None:
    from PIL import Image

    Image.init()
    kind: str | None = Image.EXTENSION.get(target.suffix.lower())
    return kind


def _print_pictures(rows: "list[Row]", scores: bool) -> None:
    from rich.console import Console

    from prunetune.review.pictures.terminal import print_kept

    print_kept(Console(), rows, scores=scores)


def _print_counts(out: Output, row: "Row", quiet: bool) -> None:
    if quiet:
        return
    sides = [("", row.kept)] if row.against is None else [("A, ", row.kept), ("B, ", row.against)]
    for prefix, kept in sides:
        for stage in kept.stages:
            out.line(prefix + stage.caption)
            for name, member in kept.views():
                out.line(f"  {name}: {int((member & stage.kept).sum())} of {int(member.sum())}")
    if row.against is not None:
        both = row.both
        shown = "of pictures of another size" if both is None else f"{int(both.sum())} kept by both"
        out.line(f"last stages: {shown}")


def _described(path: str, row: "Row", answers: dict[str, str] | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "image": path,
        "image_tokens": len(row.kept.geometry),
        "stages": _stages(row.kept),
        "answers": answers,
    }
    if row.against is not None:
        common = None if row.both is None else int(row.both.sum())
        data |= {"against": _stages(row.against), "kept_by_both": common}
    return data


def _stages(kept: "Kept") -> list[dict[str, Any]]:
    return [
        {
            "layer": stage.layer,
            "kept": stage.count,
            "of": len(stage.kept),
            "share": stage.count / len(stage.kept),
            "views": {
                name.partition(" ")[0]: int((member & stage.kept).sum())
                for name, member in kept.views()
            },
        }
        for stage in kept.stages
    ]


def _read(path: str) -> Any:
    from prunetune.calibration.pictures import Source, decode

    try:
        return decode(Source(path, partial(read_plain, Path(path))))
    except DataError as error:
        # What to do with one bad picture of a set is of no use here.
        reason = str(error).rpartition(";")[0]
        raise DataError(f"{reason}; give a picture that can be read") from None


def _save(sheet: Any, target: Path) -> None:
    import io

    from prunetune.files import write_atomically

    buffer, kind = io.BytesIO(), _kind(target)
    most = _LONGEST.get(str(kind))
    if most is not None and max(sheet.size) > most:
        raise ConfigError(
            f"--output: received {str(target)!r} for a sheet of {sheet.width} x {sheet.height} "
            f"pixels, allowed at most {most} a side in {kind}; give a .png, or fewer pictures"
        )
    sheet.save(buffer, format=kind)
    try:
        write_atomically(target, buffer.getvalue())
    except OSError as error:
        raise ConfigError(
            f"--output: cannot write {str(target)!r}: {error.strerror}; choose another place"
        ) from None


def _answers(loaded: Any, configs: list[Any], picture: Any, question: str) -> dict[str, str]:
    from prunetune.calibration import Sample, greedy_answer
    from prunetune.runtime import apply

    sample = Sample((picture,), question, id="image")
    found = {"unpruned": greedy_answer(loaded, sample, _NEW_TOKENS)}
    for key, config in zip(("pruned", "against"), configs):
        with apply(loaded.model, config, processor=loaded.processor):
            found[key] = greedy_answer(loaded, sample, _NEW_TOKENS)
    return found
