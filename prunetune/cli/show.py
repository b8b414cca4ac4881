"""``show``: the tokens a config keeps of a picture."""

from pathlib import Path
from typing import Annotated, Any

import typer

from prunetune.cli._app import AsJson, Device, Dtype, ModelName, Threads, verb
from prunetune.cli._output import Output
from prunetune.errors import ConfigError, DataError

_QUESTION = "Describe the image."
_NEW_TOKENS = 24


@verb(
    "show",
    "prunetune show tiny.prune.json photo.jpg -o kept.png",
    "prunetune show tiny.prune.json photo.jpg --question 'what color is the square ?'",
)
def show(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A config file.")],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture.")],
    question: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=f"Asked of the picture.  [default: {_QUESTION}]"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="[default: IMAGE-kept.png here]"),
    ] = None,
    model: ModelName = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Draw a picture stage by stage: kept tokens clear, dropped ones grey and hatched.

    Thumbnail and any-resolution tiles are drawn apart, since they are different tokens. With a
    question, the answers with and without pruning are printed too.
    """
    from prunetune.config import PruningConfig

    pruning = PruningConfig.load(config)
    picture = _read(image)
    target = Path(output) if output else Path(f"{Path(image).stem}-kept.png")
    if not (model or pruning.model.name):
        raise ConfigError(f"{config}: model.name is empty; say which model with --model")
    from prunetune.cli._environment import set_threads
    from prunetune.models import load_model
    from prunetune.review import contact_sheet, kept_tokens

    set_threads(threads)
    revision = pruning.model.revision if model is None else None
    loaded = load_model(model or pruning.model.name, dtype=dtype, device=device, revision=revision)
    kept = kept_tokens(loaded, pruning, picture, question or _QUESTION)
    title = f"{Path(config).name} on {Path(image).name}"
    _save(contact_sheet(picture, kept, f"{title}: {question}" if question else title), target)
    answers = _answers(loaded, pruning, picture, question) if question else None
    out = Output(as_json)
    for stage in kept.stages:
        out.line(stage.caption)
        for name, member in kept.views():
            out.line(f"  {name}: {int((member & stage.kept).sum())} of {int(member.sum())}")
    if answers is not None:
        out.line(f"answer: {answers['pruned']!r}, unpruned: {answers['unpruned']!r}")
    out.line(f"picture: {target}")
    out.finish(
        {
            "picture": str(target),
            "image_tokens": len(kept.geometry),
            "stages": [
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
            ],
            "answers": answers,
        }
    )


def _read(path: str) -> Any:
    from prunetune.calibration.pictures import Source, decode

    try:
        return decode(Source(path, Path(path).read_bytes))
    except DataError as error:
        # What to do with one bad picture of a set is of no use here.
        reason = str(error).rpartition(";")[0]
        raise DataError(f"{reason}; give a picture that can be read") from None


def _save(sheet: Any, target: Path) -> None:
    import io

    from PIL import Image

    from prunetune.files import write_atomically

    Image.init()
    kind = Image.EXTENSION.get(target.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise ConfigError(f"--output: received {str(target)!r}, allowed .png, .jpg or .webp")
    buffer = io.BytesIO()
    sheet.save(buffer, format=kind)
    try:
        write_atomically(target, buffer.getvalue())
    except OSError as error:
        raise ConfigError(
            f"--output: cannot write {str(target)!r}: {error.strerror}; choose another place"
        ) from None


def _answers(loaded: Any, config: Any, picture: Any, question: str) -> dict[str, str]:
    from prunetune.calibration import Sample, encode
    from prunetune.runtime import apply

    inputs = encode(loaded.processor, [Sample((picture,), question, id="image")])
    inputs = inputs.to(next(loaded.model.parameters()).device)

    def answer() -> str:
        ids = loaded.model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        text: str = loaded.processor.tokenizer.decode(new, skip_special_tokens=True)
        return text.strip()

    unpruned = answer()
    with apply(loaded.model, config):
        return {"pruned": answer(), "unpruned": unpruned}
