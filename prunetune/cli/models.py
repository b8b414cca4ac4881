"""``models``: the models that have a short name."""

from typing import TYPE_CHECKING

from prunetune.cli._app import AsJson, OneName, named, verb
from prunetune.cli._output import Output

if TYPE_CHECKING:
    from prunetune.models import Alias


@verb("models", "prunetune models", "prunetune models qwen2.5-vl-3b")
def models(name: OneName = None, as_json: AsJson = False) -> None:
    """List models by short name: family, support and its proof, memory, weights here or not.

    Memory is what a device needs in bfloat16. Any hub id or folder of a supported family works too.
    """
    from prunetune.models import ALIASES

    rows = [
        {
            "name": alias.alias,
            "hub_id": alias.hub_id,
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
    out = Output(as_json)
    out.table(
        ("name", "family", "status", "here", "size", ">memory", "hub id", "proven by"),
        [
            (
                str(row["name"]),
                str(row["model_type"]),
                str(row["status"]),
                "yes" if row["here"] else "no",
                str(row["size"]),
                "-" if row["memory_gb_bf16"] is None else f"{row['memory_gb_bf16']:.0f} GB",
                str(row["hub_id"]),
                str(row["proof"]),
            )
            for row in rows
        ],
        wrap="proven by",
    )
    out.finish({"models": rows})


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
