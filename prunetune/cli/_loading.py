"""The flags of every verb that loads a model."""

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.config import ModelRef

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
Loading = dict[str, Any]
"""What ``load_model`` takes beside a name; a verb with a parameter ``loading`` has its flags."""

FLAGS = {
    "dtype": Dtype,
    "device": Device,
    "device_map": DeviceMap,
    "attn": Attn,
    "revision": Revision,
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
    return {**arguments, "loading": loading}


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
