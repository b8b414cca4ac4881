"""``serve``: an OpenAI-compatible server of a pruned model."""

import sys
from typing import Annotated

import typer

from prunetune.cli._app import AsJson, ModelName, Threads, at_least, verb, within
from prunetune.cli._loading import Loading, model_named, prepare_pictures
from prunetune.cli._output import Output, note

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@verb(
    "serve",
    "prunetune serve tiny.prune.json",
    "prunetune serve tiny.prune.json --log requests.jsonl",
    "prunetune serve llava-next.prune.json --host 0.0.0.0 --port 8000 --dtype bfloat16",
)
def serve(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A config file.")],
    model: ModelName = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0 for a free one.")] = 8000,
    log: Annotated[
        str | None,
        typer.Option(metavar="FILE.jsonl", help="Keep requests with pictures, for --data."),
    ] = None,
    queue: Annotated[
        int, typer.Option(metavar="N", help="Requests that may wait; more are answered 429.")
    ] = 32,
    max_body: Annotated[
        int, typer.Option(metavar="MIB", help="Most that one request may be, pictures included.")
    ] = 32,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name clients may use beside localhost; repeatable."),
    ] = None,
    allow_private_hosts: Annotated[
        bool,
        typer.Option("--allow-private-hosts", help="Fetch pictures from private networks too."),
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Serve a pruned model over OpenAI's API until Ctrl-C: transformers' server, one model.

    Requests are generated one after the other. There is no log-in: it listens on this machine
    only unless --host says otherwise. GET /prunetune tells the config and what it did last,
    GET /metrics counts (Prometheus).
    """
    from prunetune.config import PruningConfig

    pruning = PruningConfig.load(config)
    for flag, value, least in (("--port", port, 0), ("--queue", queue, 0)):
        at_least(flag, value, least)
    within("--max-body", max_body, 1, 1024)
    name = model_named(config, pruning.model, model, loading)
    prepare_pictures(pruning.provenance.processor, loading)
    from prunetune.budget import stated_retention
    from prunetune.cli._environment import set_threads
    from prunetune.deploy.front.limits import Limits
    from prunetune.deploy.request_log import check
    from prunetune.deploy.serve import Server, pruned_app, require
    from prunetune.models import load_model

    require()
    kept_in = None if log is None else check(log)
    set_threads(threads)
    limits = Limits(
        body=max_body << 20,
        bodies=4 * max_body << 20,
        waiting=queue,
        private_hosts=allow_private_hosts,
        hosts=tuple(allow_host or ()),
    )
    loaded = load_model(name, **loading)
    app, _ = pruned_app(loaded, pruning, name, log=kept_in, limits=limits)
    from prunetune.deploy.front.listener import leave

    server = Server(app, host, port)
    kept = stated_retention(pruning)
    out = Output(as_json)
    out.line(f"model {name!r}, mean retention {100 * kept:.4g}%: {server.url}/v1  (Ctrl-C ends it)")
    if host not in _LOOPBACK:
        note(f"warning: everyone who can reach {host} can use this model")
    if kept_in is not None:
        note(f"what is asked is kept in {kept_in}, pictures included")
    out.finish({"url": server.url, "model": name, "config": config, "digest": pruning.digest()})
    sys.stdout.flush()
    ended_by = server.serve()
    # Not the interpreter's own end: it would wait for pictures on their way, and may crash under
    # a forward that still runs.
    if ended_by is not None:
        leave(ended_by)
