"""``push``: a config and its card to the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AsJson, verb
from prunetune.cli._output import Output, note
from prunetune.errors import ConfigError
from prunetune.hub.uris import FILE

if TYPE_CHECKING:
    from prunetune.config import PruningConfig

CONFIG_FILE = "config.json"


@verb(
    "push",
    "prunetune push qwen.prune.json ORG/NAME",
    "prunetune push studies/qwen2.5-vl-keep0.25 ORG/NAME --filename keep0.25.prune.json",
    "prunetune push qwen.prune.json ORG/NAME --held-out-of studies/qwen2.5-vl-keep0.25",
)
def push(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A config file, or a run's folder: what it chose."),
    ],
    repo: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME", help="Repository of the hub, or hf://ORG/NAME/FILE.json."
        ),
    ],
    filename: Annotated[
        str, typer.Option(metavar="FILE.json", help="What it is called there.")
    ] = FILE,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to write to.  [default: main]")
    ] = None,
    held_out_of: Annotated[
        str | None,
        typer.Option(metavar="STUDY", help="Put this study's held-out table on the card."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Of several studies, this one.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request, for what is not yours.")
    ] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a config to the hub with a card, in one commit: provenance and held-out table.

    Whoever is named by `hf auth login` or HF_TOKEN sends it. What else stands on the card stays.
    """
    pushed_config, result = _chosen(config, held_out_of, name)
    digest = pushed_config.digest()
    ref = pushed_config.model
    if ref.revision is None and ref.name != "tiny":
        note(
            f"note: the config's model is {ref.name!r}, which is not known to be on the hub; "
            "others have to say --model"
        )
    done = pushed_config.push_to_hub(
        repo,
        filename=filename,
        revision=revision,
        result=result,
        private=private or None,
        create_pr=create_pr,
        commit_message=message,
    )
    out = Output(as_json)
    out.line(f"config: {done.place}")
    out.line(f"see: {done.url}")
    if result is None:
        out.line("the card has no held-out table; --held-out-of STUDY puts one there")
    out.finish(
        {
            "config": str(done.place),
            "url": done.url,
            "repo": done.place.repo,
            "filename": done.place.file,
            "commit": done.place.revision,
            "digest": digest,
            "held_out_table": result is not None,
        }
    )


def _chosen(
    config: str, held_out_of: str | None, name: str | None
) -> "tuple[PruningConfig, dict[str, Any] | None]":
    """Return the config, and what its search ended with where that is known."""
    from prunetune.config import PruningConfig

    folder = Path(config)
    if not folder.is_dir():
        chosen = PruningConfig.load(config)
        return chosen, _result(chosen, held_out_of, name) if held_out_of else None
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{config} has no {CONFIG_FILE}: its search has not ended, or has a front to choose "
            f"from; run: prunetune export {config} -o FILE, and push FILE"
        )
    chosen = PruningConfig.load(folder / CONFIG_FILE)
    return chosen, _result(chosen, held_out_of or config, name)


def _result(chosen: "PruningConfig", study: str, name: str | None) -> dict[str, Any] | None:
    """Return what a study ended with, which has to be this config.

    Raises:
        ConfigError: It is about another one.
    """
    from prunetune.cli._environment import quieten_optuna
    from prunetune.config import PruningConfig
    from prunetune.study.find import find_study
    from prunetune.study.outcome.record import read_record

    quieten_optuna()
    found = find_study(study, name)
    record = read_record(found.study.user_attrs)
    if record is None:
        return None
    if PruningConfig.parse(record["config"]).digest() != chosen.digest():
        raise ConfigError(
            f"the held-out table of {found.shown} is about its trial {record['trial']}, which "
            "prunes otherwise than CONFIG; push that one, or leave --held-out-of out"
        )
    result: dict[str, Any] = record["result"]
    return result
