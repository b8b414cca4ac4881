"""The flags of every verb that loads a model."""

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._flags import json_or_text, share_of
from prunetune.cli._output import note
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prunetune.config import ModelRef, PruningConfig

Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1.  [default: cuda if any]")
]
Dtype = Annotated[
    str | None, typer.Option(metavar="NAME", help="float32, bfloat16, float16, auto.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(metavar="MAP", help="Spread over devices: auto, balanced, sequential or JSON."),
]
Attn = Annotated[str | None, typer.Option(metavar="NAME", help="sdpa, eager or flash_attention_2.")]
Revision = Annotated[
    str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub id.")
]
MinPixels = Annotated[
    int | None, typer.Option(metavar="N", help="Of a picture: --processor min_pixels=N.")
]
MaxPixels = Annotated[
    int | None, typer.Option(metavar="N", help="Of a picture: --processor max_pixels=N.")
]
Processor = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="An option of the model's processor; repeatable."),
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="A preset in place of CONFIG; needs --model.")
]
Keep = Annotated[str | None, typer.Option(metavar="B", help="Move it onto this mean retention.")]
Loading = dict[str, Any]
"""What ``load_model`` takes beside a name; a verb with a parameter ``loading`` has its flags."""

FLAGS = {
    "dtype": Dtype,
    "device": Device,
    "device_map": DeviceMap,
    "attn": Attn,
    "revision": Revision,
    "min_pixels": MinPixels,
    "max_pixels": MaxPixels,
    "processor": Processor,
}


def spread(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return a verb's parameters with ``loading`` replaced by its flags."""
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in FLAGS.items()
    ]
    plain = [parameter for parameter in parameters if parameter.name != "loading"]
    return [*plain, *flags] if len(plain) < len(parameters) else plain


def gather(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a verb's arguments with its flags gathered into ``loading``."""
    loading = {name: arguments.pop(name) for name in FLAGS}
    bounds = {name: loading.pop(name) for name in ("min_pixels", "max_pixels")}
    loading["processor"] = processor_options(bounds, loading["processor"])
    return {**arguments, "loading": loading}


def processor_options(
    bounds: dict[str, int | None], given: list[str] | None
) -> dict[str, Any] | None:
    """Return the processor's options by name; None where there are none.

    Raises:
        ConfigError: One is no ``key=value``, or is given twice.
    """
    found: dict[str, Any] = {}
    named = [(key, str(value)) for key, value in bounds.items() if value is not None]
    for text in given or ():
        key, equals, value = text.partition("=")
        if not (key.strip() and equals):
            raise ConfigError(
                f"--processor: received {text!r}, allowed KEY=VALUE, e.g. max_pixels=602112"
            )
        named.append((key.strip(), value))
    for key, value in named:
        if key in found:
            raise ConfigError(f"--processor: received {key} twice; give it once")
        found[key] = json_or_text(value)
    return found or None


def model_named(origin: str, own: "ModelRef", model: str | None, loading: Loading) -> str:
    """Return the name of the model to load: ``model``, or else a config's own at its revision.

    Args:
        origin: The config's file, for messages.
        own: The config's model.
        model: What ``--model`` says.
        loading: Gets the config's revision where neither a model nor a revision is given.

    Raises:
        ConfigError: There is no name.
    """
    name = model or own.name
    if not name:
        raise ConfigError(f"{origin}: model.name is empty; say which model with --model")
    if model is None and loading["revision"] is None:
        loading["revision"] = own.revision
    return name


def prepare_pictures(own: "Mapping[str, Any] | None", loading: Loading) -> None:
    """Fill in the processor's options that a config was searched with; say where others are given.

    Args:
        own: The config's.
        loading: What the flags say; gets them.
    """
    from prunetune.models.options import differing

    loading["processor"], line = differing(own, loading["processor"])
    if line:
        note(f"note: {line}")


def wanted_config(
    config: str | None, preset: str | None, keep: str | None, model: str | None, loading: Loading
) -> "PruningConfig":
    """Return a file's config, or a preset for a model; moved onto a budget where one is given.

    Args:
        config: A config file.
        preset: Name of a preset, in place of it.
        keep: What ``--keep`` says.
        model: What ``--model`` says; of it only the config is read.
        loading: Flags of loading it.

    Raises:
        ConfigError: Not exactly one of the two is given, or it does not fit the model.
    """
    from prunetune.config import Provenance
    from prunetune.deploy.subject import Wanted

    wanted = Wanted(config, preset, share_of("--keep", keep))
    if wanted.config is not None and wanted.keep is None:
        return wanted.config
    own = wanted.config.model if wanted.config is not None else None
    if own is not None and model is None:
        made, said = wanted.config_for(own.model_type, own.num_layers, f"{config}'s own model")
    else:
        if model is None:
            raise ConfigError(f"--preset {preset}: no model is named; say which with --model")
        from prunetune.models.described import config_of
        from prunetune.models.load import find_model

        folder, kind = find_model(model, loading["revision"])
        depth = config_of(folder).get_text_config()
        made, said = wanted.config_for(kind, int(depth.num_hidden_layers), f"--model {model}")
    if said:
        note(f"note: {said}")
    # Of another budget nothing is promised.
    return made.model_copy(update={"provenance": Provenance()})
