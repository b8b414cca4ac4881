"""The flags of ``search``, as its help shows them."""

from typing import Annotated

import typer

Keep = Annotated[
    str | None,
    typer.Option(
        metavar="B", help="Budget: mean share of image tokens over all layers.  [default: 0.25]"
    ),
]
Flops = Annotated[
    str | None,
    typer.Option(metavar="X", help="Or: share of the unpruned prefill's FLOPs."),
]
KvMib = Annotated[
    str | None,
    typer.Option(metavar="Y", help="Or: MiB of image tokens' KV cache, average sample."),
]
Objective = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="metric, or pareto: metric and cost, over a range --keep 0.05:0.5.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        metavar="P", help="Find the cheapest config that loses at most P points of accuracy."
    ),
]
MaxGap = Annotated[
    float | None, typer.Option(metavar="G", help="Or whose held-out gap is at most G.")
]
MinAgreement = Annotated[
    float | None,
    typer.Option(metavar="X", help="Or that gives the same next token in a share X of samples."),
]
Cheapest = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What is cheap: kv (cache), flops or ms, timed here.  [default: kv]",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="Calibration data: tiny, a folder, .jsonl or hf:ID."),
]
HeldOut = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="Held-out data.  [default: a part of --data]"),
]
Samples = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="At most N calibration samples; for a quick look --held-out-samples, too."
    ),
]
HeldOutSamples = Annotated[
    int | None,
    typer.Option(metavar="N", help="At most N held-out samples, drawn by picture."),
]
Trials = Annotated[
    int | None, typer.Option(metavar="N", help="Trials the study ends with.  [default: 100]")
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="S", help="End the whole run after S seconds, table included."),
]
Patience = Annotated[
    int | None,
    typer.Option(metavar="N", help="Stop after N trials without a better one.  [default: 0, off]"),
]
Metric = Annotated[
    str | None, typer.Option(metavar="NAME", help="cosine (the gap), kl, cosine+kl or kl-answer.")
]
Sampler = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="tpe, tpe-uni, gp, cmaes, nsga2, qmc, random."),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Of sampler, split and order.  [default: 0]")
]
TrialPruner = Annotated[
    str | None, typer.Option(metavar="NAME", help="Optuna's early stopping: wilcoxon or none.")
]
Scorers = Annotated[
    str | None, typer.Option(metavar="A,B", help="Scorers to sum; see: prunetune scorers.")
]
Selectors = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="What may choose the kept set.  [default: top,cover,dpp]"),
]
Mass = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Allowed mass, 0 to 1; 0: none.  [default: 0,1]"),
]
Pixels = Annotated[
    str | None,
    typer.Option(
        metavar="A,B|yes|no",
        help="Make pictures smaller first: shares of their pixels to try, or yes for those that "
        "can meet the budget.  [default: no]",
    ),
]
Stages = Annotated[str | None, typer.Option(metavar="A-B", help="Fewest and most stages, in 1-3.")]
Layers = Annotated[str | None, typer.Option(metavar="A-B", help="First and last layer of a stage.")]
Engine = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="vllm: search only what vLLM can run, too."),
]
Presets = Annotated[
    str | None,
    typer.Option("--preset", metavar="A,B", help="Published methods tried first, or none."),
]
Spec = Annotated[
    str | None, typer.Option(metavar="FILE", help="Study spec (TOML); flags override it.")
]
Out = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="The run's folder.  [default: studies/MODEL-BUDGET]"),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="PRUNETUNE_STORAGE",
        show_envvar=False,
        help="Database of the study, also $PRUNETUNE_STORAGE.  [default: FOLDER/study.db]",
    ),
]
Study = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the study.  [default: by the spec]")
]
BatchSize = Annotated[
    int, typer.Option(metavar="N", help="Samples between two checks of the trial pruner.")
]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes here that share the study.")]
CacheDir = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Unpruned references; also $PRUNETUNE_CACHE."),
]
CacheLimit = Annotated[
    float, typer.Option(metavar="GIB", help="Size of the cache; the oldest goes first.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep references in memory only.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html at the end.")]
