"""``dashboard``: Optuna dashboard over a study, with pictures and notes."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AsJson, Threads, at_least, verb
from prunetune.cli._loading import Loading
from prunetune.cli._output import Output, note

if TYPE_CHECKING:
    from prunetune.review.dashboard.publish import Publisher


@verb(
    "dashboard",
    "prunetune dashboard studies/tiny-keep0.25",
    "prunetune dashboard postgresql://me@db.example/studies --artifacts artifacts --port 8080",
)
def dashboard(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="A run's folder, its study.db or a storage URL.  [default: the newest run]",
            show_default=False,
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Pictures and tables.  [default: artifacts/ in the run]"),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Port.  [default: a free one]")
    ] = None,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="Load the model to draw what is kept.  [default: of tiny only]",
            show_default=False,
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Serve Optuna dashboard over all studies of a database; Ctrl-C ends it.

    Notes on a study and on its best trials, pictures of what they keep, tables of their samples
    and figures are written into the database, and again whenever a trial becomes the best. The
    dashboard has no log-in and can delete studies: it listens on this machine only unless --host
    says otherwise.
    """
    at_least("--port", port, 0)
    from prunetune.study.database.place import locate

    if study is not None:
        locate(study)
    from prunetune.cli._environment import quieten_optuna
    from prunetune.review.dashboard.dashboard import (
        LOOPBACK,
        Dashboard,
        artifact_folder,
        newest_run,
    )
    from prunetune.secrets import redact
    from prunetune.study.database.connect import open_storage

    quieten_optuna()
    target = study or str(newest_run(Path("studies")))
    url, folder = locate(target)
    store = artifact_folder(folder, Path(artifacts) if artifacts else None)
    storage = open_storage(url, reading=True)
    # A page must not wait for minutes until a database is back.
    storage.patience = 5.0
    server = Dashboard(
        storage,
        store,
        host=host,
        port=port or 0,
        prepare=lambda publisher: _load(publisher, pictures, threads, loading),
    )
    before = signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
    out = Output(as_json)
    out.line(f"study database: {redact(target)}, artifacts: {store.folder}")
    out.line(f"dashboard: {server.url}  (Ctrl-C ends it)")
    if host not in LOOPBACK:
        note(f"warning: everyone who can reach {host} can read and delete these studies")
    shown = {"url": server.url, "storage": redact(target), "artifacts": str(store.folder)}
    out.finish(shown)
    sys.stdout.flush()
    if open_page:
        import webbrowser

        webbrowser.open(server.url)
    try:
        server.serve()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _load(
    publisher: "Publisher", wanted: bool | None, threads: int | None, loading: Loading
) -> None:
    """Load a study's samples and model, where pictures of it are wanted."""
    from prunetune.models.embedded import is_embedded
    from prunetune.spec import StudySpec

    spec = StudySpec.parse(publisher.study.user_attrs["spec"])
    if wanted is None:
        wanted = is_embedded(spec.model) and (spec.data is None or is_embedded(spec.data))
    if not wanted:
        return
    from prunetune.cli._environment import set_threads
    from prunetune.models import load_model
    from prunetune.models.fingerprint import weights_digest
    from prunetune.models.options import differing
    from prunetune.study.opening import other_weights
    from prunetune.study.prepare import load_data

    how = {**loading, "revision": loading["revision"] or spec.revision}
    how["processor"], _ = differing(spec.processor, loading.get("processor"))
    try:
        set_threads(threads)
        publisher.samples = tuple(sample.shown() for sample in load_data(spec)[0])
        loaded: Any = load_model(spec.model, **how)
    except Exception as error:
        reason = " ".join(str(error).split())
        note(f"warning: no pictures of {publisher.study.study_name!r}: {reason}")
        return
    if other_weights(publisher.study.user_attrs, weights_digest(loaded.model)):
        note(
            f"warning: no pictures of {publisher.study.study_name!r}: the model's weights are not "
            "those that it was made with, or are in another number format (--dtype)"
        )
        return
    publisher.loaded = loaded
