"""``report``: one page about a study, to read, print and send around."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from prunetune.cli._app import AsJson, SkipBad, Threads, verb
from prunetune.cli._loading import Loading
from prunetune.cli._output import Output
from prunetune.cli.printed.bench import Price, TimeIt, bench_study, price_named, print_saving
from prunetune.cli.progress import progress
from prunetune.errors import ConfigError


@verb(
    "report",
    "prunetune report studies/tiny-keep0.25",
    "prunetune report studies/tiny-keep0.25 studies/tiny-keep0.1",
    "prunetune report --storage postgresql://USER@HOST/DATABASE --study NAME -o report.html",
)
def report(
    study: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="A run's folder, its study.db or a storage URL."),
    ] = None,
    other: Annotated[
        str | None,
        typer.Argument(metavar="[OTHER]", help="A second study: both are compared in one page."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Of several studies, this one.")
    ] = None,
    other_name: Annotated[
        str | None,
        typer.Option("--other-study", metavar="NAME", help="The same of OTHER.  [default: NAME]"),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Database of the study, instead of STUDY.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="[default: report.html in its folder; of two comparison.html here]",
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option(help="Run the worst samples again and show what they keep.")
    ] = True,
    show_samples: Annotated[
        bool, typer.Option("--show-samples", help="Show conversations, which may be somebody's.")
    ] = False,
    bench: TimeIt = False,
    price: Price = None,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Write one self-contained HTML file about a study: what it found and what that is worth.

    It holds everything it shows, loads nothing from the network, and is made from the study alone;
    only the pictures of the worst samples need the model and the data on this machine. Of two
    studies it is a comparison: figures side by side, paired where held-out samples are the same.
    """
    if (study is None) == (storage is None):
        raise ConfigError(
            "STUDY: received "
            + ("none" if study is None else "STUDY and --storage")
            + ", allowed one of them: a folder, its study.db, or a storage URL"
        )
    target = Path(output) if output else None
    if target is not None and (target.is_dir() or target.suffix.lower() not in (".html", ".htm")):
        raise ConfigError(f"--output: received {output!r}, allowed a file that ends in .html")
    from prunetune.study.database.place import locate

    locate(study or storage or "")
    from prunetune.cli._environment import quieten_optuna, set_threads
    from prunetune.review.report.report_file import default_path, load_for, write_report
    from prunetune.study.find import find_study

    quieten_optuna()
    if other is not None:
        if bench or price is not None or storage is not None:
            raise ConfigError("OTHER: a comparison times nothing and takes two studies, not a flag")
        if not pictures or show_samples or skip_bad:
            raise ConfigError(
                "OTHER: a comparison shows no samples; leave out --no-pictures, --show-samples and "
                "--skip-bad"
            )
        names = name, other_name or name
        return _compare(Output(as_json), (study or "", other), names, target)
    hourly = price_named(price)
    found = find_study(study or storage or "", name)
    if pictures or bench or price:
        set_threads(threads)
    load = functools.cache(lambda: load_for(found, skip_bad=skip_bad, **loading))
    saving = None
    with progress() as show:
        if bench or price:
            sides = load()
            saving = bench_study(found, sides.model, sides.held_out.samples, hourly, show)
            found = find_study(study or storage or "", found.study.study_name)
        written = write_report(
            found,
            target or default_path(found),
            load if pictures else None,
            show,
            show_samples=show_samples,
        )
    out = Output(as_json)
    out.line(written.verdict)
    if saving is not None:
        print_saving(out, saving)
    if written.missing and pictures:
        out.line(f"without pictures: {written.missing}")
    out.line(f"report: {written.path} ({written.size / 2**20:.1f} MiB)")
    out.finish(
        {
            "report": str(written.path),
            "bytes": written.size,
            "study": found.study.study_name,
            "verdict": written.verdict,
            "saving": saving and saving.to_dict(),
            "pictures": pictures and not written.missing,
            "missing": written.missing,
        }
    )


def _compare(
    out: Output,
    targets: tuple[str, str],
    names: tuple[str | None, str | None],
    target: Path | None,
) -> None:
    """Write the page about two studies."""
    from prunetune.review.report.versus_page import VERSUS_FILE, write_versus
    from prunetune.study.find import find_study

    one, other = (find_study(*pair) for pair in zip(targets, names, strict=True))
    written = write_versus((one, other), target or Path(VERSUS_FILE))
    out.line(written.verdict)
    out.line(f"report: {written.path} ({written.size / 2**20:.1f} MiB)")
    out.finish(
        {
            "report": str(written.path),
            "bytes": written.size,
            "studies": [one.study.study_name, other.study.study_name],
            "verdict": written.verdict,
        }
    )
