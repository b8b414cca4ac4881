"""``presets``: published methods and controls, as published or moved onto a budget."""

from typing import Annotated, Any

import typer

from prunetune.cli._app import AsJson, OneName, at_least, named, one_of, verb
from prunetune.cli._flags import share_of
from prunetune.cli._output import Output, percent
from prunetune.errors import ConfigError


@verb(
    "presets",
    "prunetune presets",
    "prunetune presets topv --keep 0.1",
    "prunetune presets --keep 0.1 --model-type llava_next --num-layers 32",
)
def presets(
    name: OneName = None,
    keep: Annotated[
        str | None, typer.Option(metavar="B", help="Move them onto this mean retention.")
    ] = None,
    model_type: Annotated[
        str, typer.Option(metavar="TYPE", help="The transformers model_type they are for.")
    ] = "llava_next",
    num_layers: Annotated[int, typer.Option(metavar="N", help="Decoder layers.")] = 32,
    as_json: AsJson = False,
) -> None:
    """List presets: where each prunes, how much, by which scores, and its source."""
    from prunetune.families import FAMILIES
    from prunetune.presets import preset_names, read_preset

    one_of("--model-type", model_type, sorted(FAMILIES))
    at_least("--num-layers", num_layers, 1)
    share = share_of("--keep", keep)
    if share is not None:
        from prunetune.budget import check_keep

        check_keep(share)
    rows = []
    for one in named("presets", name, {k: k for k in preset_names()}):
        row = {"name": one, "source": read_preset(one).get("source", "")}
        rows.append(row | _placed(one, model_type, num_layers, share))
    out = Output(as_json)
    out.table(
        ("preset", ">mean retention", "stages", "note"),
        [(r["name"], percent(r["mean_retention"]), r["shown"], r["note"]) for r in rows],
        wrap="stages",
    )
    out.line()
    out.table(("preset", "source"), [(r["name"], r["source"]) for r in rows], wrap="source")
    out.finish(
        {
            "model_type": model_type,
            "num_layers": num_layers,
            "keep": share,
            "presets": [{k: v for k, v in row.items() if k != "shown"} for row in rows],
        }
    )


def _placed(name: str, model_type: str, num_layers: int, keep: float | None) -> dict[str, Any]:
    from prunetune.budget import mean_retention
    from prunetune.presets import load_preset

    try:
        config, note = load_preset(name, model_type=model_type, num_layers=num_layers, keep=keep)
    except ConfigError as error:
        return {"mean_retention": None, "shown": "-", "note": str(error), "config": None}
    return {
        "mean_retention": mean_retention(config.stages, num_layers),
        "shown": "; ".join(_stage(stage) for stage in config.stages),
        "note": note,
        "config": config.model_dump(mode="json"),
    }


def _stage(stage: Any) -> str:
    if not stage.retention:
        return f"layer {stage.layer}: no image token"
    by = " + ".join(scorer.name for scorer in stage.scorers)
    if stage.selector is not None:
        by = f"{stage.selector.name}({by})" if by else stage.selector.name
    by = by or "same scores"
    restored = f", {stage.restorer.name}" if stage.restorer is not None else ""
    restored += f", mass {stage.mass:g}" if stage.mass else ""
    return f"layer {stage.layer}: {percent(stage.retention)} by {by}{restored}"
