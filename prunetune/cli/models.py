"""``models``: the models that have a short name, and what one of another class would need."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AsJson, OneName, named, verb
from prunetune.cli._output import Output
from prunetune.errors import ConfigError

if TYPE_CHECKING:
    from prunetune.models import Alias


@verb(
    "models",
    "prunetune models",
    "prunetune models qwen2.5-vl-3b",
    "prunetune models --check FOLDER",
)
def models(
    name: OneName = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Say what the model of its config.json needs and has."),
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(metavar="CHECKOUT", help="Write the family that --check finds missing there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models by short name: family, support and its proof, memory, weights here or not.

    Memory is what a device needs in bfloat16. Any hub id or folder of a supported family works too.
    With --check: what a folder's model needs to be pruned and what was found, from its config.json
    alone; for a class without a family, the file of one to go on from. Exit status 1: the model
    cannot be pruned.
    """
    if check is not None:
        if name is not None:
            raise ConfigError(f"models: received {name!r} and --check, allowed one of the two")
        _check(check, add, Output(as_json))
        return
    if add is not None:
        raise ConfigError("--add: goes with --check FOLDER, whose model it is about")
    _list(name, Output(as_json))


def _check(folder: str, checkout: str | None, out: Output) -> None:
    from prunetune.deploy.family_check import add_to, check_folder

    found = check_folder(folder)
    out.table(("what", f"{found.model_type}"), [list(row) for row in found.rows], wrap=None)
    if found.problem:
        out.line(f"cannot be pruned: {found.problem}")
    elif found.supported:
        out.line("can be pruned: prunetune search --model FOLDER --keep 0.25")
    written = [] if checkout is None else add_to(checkout, found)
    for path in written:
        out.line(f"written: {path}")
    if written:
        out.line(f"next: fill in what says TODO, then pytest tests/families -k {found.model_type}")
    elif found.skeleton:
        out.line()
        out.line(f"# prunetune/families/{found.model_type}.py (--add CHECKOUT writes it)")
        out.line(found.skeleton)
    out.finish(
        {
            "model_type": found.model_type,
            "supported": found.supported,
            "problem": found.problem or None,
            "found": dict(found.rows),
            "skeleton": found.skeleton or None,
            "written": [str(path) for path in written],
        }
    )
    if found.problem:
        raise typer.Exit(1)


def _list(name: str | None, out: Output) -> None:
    from prunetune.models import ALIASES
    from prunetune.models.embedded import EDITION, NAME, edition_of

    # Today's model by its number is today's model.
    name = NAME if edition_of(name) == EDITION else name
    rows = [
        {
            "name": alias.alias,
            "hub_id": None if alias.embedded else alias.hub_id,
            "model_type": alias.model_type,
            "size": alias.size,
            "supported": alias.supported,
            "status": alias.status,
            "proof": alias.proof,
            "parameters_billions": alias.parameters,
            "memory_gb_bf16": None if alias.embedded else round(alias.memory_gb, 1),
            "study_spec": alias.study,
            "here": _here(alias),
        }
        for alias in named("models", name, {alias.alias: alias for alias in ALIASES})
    ]
    if name is None:
        out.table(("name", "family", "here", "size", ">memory"), [_short(row) for row in rows])
        unsupported = [f"{row['name']} is {row['status']}" for row in rows if not row["supported"]]
        for line in unsupported:
            out.line(line)
        out.line("hub id, support and its proof of one: prunetune models NAME")
    else:
        out.table(("what", str(rows[0]["name"])), _whole(rows[0]), wrap=str(rows[0]["name"]))
    out.finish({"models": rows})


def _short(row: dict[str, Any]) -> tuple[str, ...]:
    here = "yes" if row["here"] else "no"
    size = str(row["size"])
    for where in (", embedded", ", in the repository"):
        size = size.removesuffix(where)
    return str(row["name"]), str(row["model_type"]), here, size, _memory(row)


def _whole(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("family", str(row["model_type"])),
        ("status", str(row["status"])),
        ("hub id", row["hub_id"] or "-"),
        ("weights here", "yes" if row["here"] else "no"),
        ("size", str(row["size"])),
        ("memory, bfloat16", _memory(row)),
        ("study spec", str(row["study_spec"] or "-")),
        ("proven by", str(row["proof"])),
    ]


def _memory(row: dict[str, Any]) -> str:
    return "-" if row["memory_gb_bf16"] is None else f"{row['memory_gb_bf16']:.0f} GB"


def _here(alias: "Alias") -> bool:
    """Whether the weights are on this machine."""
    from prunetune.errors import ConfigError
    from prunetune.models.embedded import folder_of

    if not alias.embedded:
        return _cached(alias.hub_id)
    try:
        return folder_of(alias.alias, "model").is_dir()
    except ConfigError:
        return False


def _cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
