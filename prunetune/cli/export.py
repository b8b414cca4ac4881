"""``export``: from a study to a config file."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AsJson, SkipBad, Threads, at_least, verb
from prunetune.cli._flags import share_of
from prunetune.cli._loading import Loading
from prunetune.cli._output import Output, number, percent
from prunetune.cli.progress import progress
from prunetune.errors import ConfigError
from prunetune.files import read_plain
from prunetune.texts import parse_json

if TYPE_CHECKING:
    from prunetune.config import PruningConfig
    from prunetune.pixels.native import Setting
    from prunetune.spec import StudySpec


@verb(
    "export",
    "prunetune export studies/tiny-keep0.25 -o tiny.prune.json",
    "prunetune export studies/tiny-keep0.25 --trial 7 -o seventh.prune.json",
    "prunetune export studies/tiny-keep0.05-0.5 --keep 0.25 -o quarter.prune.json",
)
def export(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A run's folder, its study.db or a storage URL.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Config to write.")],
    trial: Annotated[
        int | None, typer.Option(metavar="N", help="Number of the trial.  [default: the best]")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="B", help="Of a front, the best trial up to this mean retention."),
    ] = None,
    flops: Annotated[
        str | None, typer.Option(metavar="X", help="Or up to this FLOPs share.")
    ] = None,
    kv_mib: Annotated[
        float | None, typer.Option(metavar="Y", help="Or up to this visual KV cache (MiB).")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Of several studies, this one.")
    ] = None,
    show_native: Annotated[
        bool,
        typer.Option(
            "--show-native",
            help="Print the processor's and engines' own settings nearest to the config's pixels.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is no config of prunetune.")
    ] = False,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Freeze a trial in a config with its complete provenance.

    Of a study with --objective pareto, --keep (or --flops, --kv-mib, as it was searched) chooses.

    What the finished search wrote is taken as it is; another trial, or a study that has no result
    yet, is measured on both splits first.
    """
    from prunetune.study.database.place import locate

    at_least("--trial", trial, 0)
    locate(study)
    check_replaceable(Path(output), force)
    from prunetune.cli._environment import quieten_optuna, set_threads
    from prunetune.study.find import chosen_trial, find_study, measured_config, stored_config
    from prunetune.study.outcome.savings import saving_of, with_saving
    from prunetune.vllm.fits import engines

    quieten_optuna()
    found = find_study(study, name)
    costs = {
        "keep": share_of("--keep", keep),
        "flops": share_of("--flops", flops),
        "kv_mib": kv_mib,
    }
    trial = chosen_trial(found, trial, {k: v for k, v in costs.items() if v is not None})
    config = stored_config(found, trial)
    if config is None:
        set_threads(threads)
        with progress() as show:
            config = measured_config(
                found,
                trial,
                skip_bad=skip_bad,
                progress=lambda step: show(step.name, step.done, step.total),
                **loading,
            )
    config = with_saving(config, saving_of(found.study.user_attrs, config.provenance.trial))
    path = config.save(output)
    made, runs = config.provenance, engines(config)
    out = Output(as_json)
    out.line(
        f"trial {made.trial} of {made.study}: held-out gap {number(made.held_out_gap)}, "
        f"mean retention {percent(made.mean_retention)}"
    )
    if made.flops is not None:
        from prunetune.budget import flops_told

        out.line(flops_told(made.flops))
    out.line(f"config: {path}")
    native = _native(config, found.spec, skip_bad, loading) if show_native else []
    for setting in native:
        said = "exact" if setting.exact else "not exact"
        about = "; ".join(filter(None, (said, setting.note)))
        out.line(f"{setting.engine}: {setting.text}  ({about})")
    out.line(f"runs in: {', '.join(name for name, reason in runs.items() if reason is None)}")
    for name, reason in runs.items():
        if reason is not None:
            out.line(f"not in {name}: {reason}")
    out.line(f"next: {_verify(path, found.spec)}")
    out.finish(
        {
            "config": str(path),
            "study": made.study,
            "trial": made.trial,
            "gap": made.gap,
            "held_out_gap": made.held_out_gap,
            "mean_retention": made.mean_retention,
            "budget": made.budget,
            "flops": made.flops,
            "judged": made.judged and made.judged.model_dump(mode="json"),
            "saving": made.saving and made.saving.to_dict(),
            "digest": config.digest(),
            "native": [vars(setting) for setting in native],
            "runs_in": [name for name, reason in runs.items() if reason is None],
            "not_in": {name: reason for name, reason in runs.items() if reason is not None},
        }
    )


def check_replaceable(path: Path, force: bool) -> None:
    """Refuse to replace a file that is no config of prunetune; on a terminal, ask.

    Raises:
        ConfigError: It is somebody's, and nobody said that it may go.
    """
    if force or not path.is_file() or not path.stat().st_size or _is_config(path):
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        if typer.confirm(f"{path} is no config of prunetune; replace it?", err=True):
            return
        raise ConfigError(f"--output: {path} stays as it is; choose another place")
    raise ConfigError(
        f"--output: received {str(path)!r}, which is there and is no config of prunetune; allowed "
        "a new file or a config; choose another place, or replace it with --force"
    )


def _is_config(path: Path) -> bool:
    from prunetune.config import FORMAT, MOST_BYTES

    try:
        data = parse_json(read_plain(path, MOST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def _verify(config: Path, spec: "StudySpec") -> str:
    """Return the command that measures a config again, on the data it was searched with."""
    from prunetune.models.embedded import shipped_data

    words = ["prunetune", "verify", str(config)]
    if spec.data not in (None, shipped_data(spec.model)):
        words += ["--data", str(spec.data)]
    if spec.held_out:
        words += ["--held-out", spec.held_out]
    if spec.held_out_samples is not None:
        # How many calibration samples there were the config's digest tells.
        words += ["--held-out-samples", str(spec.held_out_samples)]
    if spec.allow_remote:
        words.append("--allow-remote")
    for key, value in (spec.template_args or {}).items():
        words += ["--template-arg", f"{key}={json.dumps(value)}"]
    if spec.match != "vqa":
        words += ["--match", spec.match]
    return shlex.join(words)


def _native(
    config: "PruningConfig", spec: "StudySpec", skip_bad: bool, loading: dict[str, Any]
) -> "list[Setting]":
    """Return the native settings of a config's pixels; none where it has none."""
    from prunetune.measure.counting import TokenCounter
    from prunetune.models import load_model
    from prunetune.models.options import differing
    from prunetune.pixels.native import native_settings
    from prunetune.runtime.apply import family_of
    from prunetune.study.prepare import load_data

    if config.pixels is None or not config.pixels.shrinks:
        return []
    options, _ = differing(spec.processor, loading["processor"])
    loaded = load_model(spec.model, **{**loading, "revision": spec.revision, "processor": options})
    counter = TokenCounter(loaded, family_of(loaded.model), load_data(spec, skip_bad=skip_bad)[0])
    return native_settings(
        loaded.processor,
        config.pixels,
        config.model.model_type,
        counter.sizes,
        counter.of,
        counter.total(config.pixels),
    )
