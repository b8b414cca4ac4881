"""From a spec to a result: prepares, builds the evaluators, runs the study."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from prunetune.errors import ConfigError
from prunetune.interrupts import check, heeded
from prunetune.spec import StudySpec
from prunetune.study.clock import Clock, OutOfTime
from prunetune.study.places import remove_empty
from prunetune.study.prepare import Prepared, prepare
from prunetune.study.workers.crew import Cache, Workers, crew

if TYPE_CHECKING:
    from prunetune.config import PruningConfig
    from prunetune.measure.evaluator import Evaluator
    from prunetune.models.load import Loading
    from prunetune.study.outcome.front_summary import FrontResult
    from prunetune.study.outcome.summary import SearchResult

BATCH_SIZE = 8
LOADING = "model and data were loaded"
LATE_SECONDS = 8.0
"""What a run that is too short for anything may take longer, to say how long would be enough."""
"""What a run's time may be up for before it has begun."""
_CACHE, _ALONE = Cache(), Workers()
# A held-out split is measured a few times only: keeping states of more layers would not pay.
_HELD_OUT_DEEPEST = 1


@dataclass(frozen=True)
class Step:
    """How far one step of a search is.

    Attributes:
        name: What is being done.
        done: How much of it.
        total: How much there is; None where that is not known.
        detail: What else is worth showing.
    """

    name: str
    done: int
    total: int | None = None
    detail: str = ""


def search(
    spec: StudySpec,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    skip_bad: bool = False,
    batch_size: int = BATCH_SIZE,
    cache: Cache = _CACHE,
    workers: Workers = _ALONE,
    progress: Callable[[Step], None] | None = None,
    **loading: "Unpack[Loading]",
) -> "SearchResult | FrontResult":
    """Search a pruning config for a model, or resume the search.

    One search of a study a process: another thread's running trial would be taken for one that was
    left behind. ``workers`` are processes.

    Example::

        result = prunetune.search(StudySpec(model="tiny", keep=0.25, trials=20))
        result.best.save("tiny.prune.json")

    Args:
        spec: What is searched.
        out: The run's folder; by default ``studies/<model>-<budget>`` under the current one.
        storage: Database URL; by default SQLite in the run's folder.
        study_name: By default the spec's.
        skip_bad: Leave out bad pictures and rows instead of failing.
        batch_size: Samples between two checks of the trial pruner.
        cache: Where the unpruned references are kept between searches.
        workers: Processes that work on the study here.
        progress: Called with every step's state.
        **loading: ``dtype``, ``device``, ``device_map`` and ``attn``, as ``load_model`` takes them.

    Raises:
        PrunetuneError: Bad input; the message is one line that says what to do.
        KeyboardInterrupt: Interrupted; the same call resumes.
    """
    clock = Clock(spec.timeout)
    with clock.alarmed(LOADING, LATE_SECONDS):
        prepared = prepare(
            spec, out=out, storage=storage, study_name=study_name, skip_bad=skip_bad, **loading
        )
    return run(
        prepared,
        storage=storage,
        study_name=study_name,
        batch_size=batch_size,
        cache=cache,
        workers=workers,
        options={"skip_bad": skip_bad, **loading},
        progress=progress,
        clock=clock,
    )


def run(prepared: Prepared, **how: Any) -> "SearchResult | FrontResult":
    """Run or resume the study of what was prepared; see ``run_prepared``.

    Where it fails before the study exists, no folder is left that was made for it.
    """
    try:
        return run_prepared(prepared, **how)
    except BaseException:
        remove_empty(prepared.made)
        raise


@heeded(signal.SIGINT)
def run_prepared(
    prepared: Prepared,
    *,
    storage: str | None = None,
    study_name: str | None = None,
    batch_size: int = BATCH_SIZE,
    cache: Cache = _CACHE,
    workers: Workers = _ALONE,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[Step], None] | None = None,
    clock: Clock | None = None,
    told: Callable[[str], None] = lambda line: None,
    requests: int = 0,
) -> "SearchResult | FrontResult":
    """Run or resume the study of what was prepared; see ``search``.

    Args:
        options: What else ``prepare`` was given, for further workers.
        clock: Of the run, which has begun with loading; None: ``spec.timeout`` from now on.
        told: Is told what will be done, and how long it takes.
        requests: That are timed afterwards, for which time is kept.
    """
    from prunetune.study.forecast import first_pictures, forecast, page_seconds
    from prunetune.study.study import Progress, run_search

    clock = clock or Clock(prepared.spec.timeout)
    begun = clock.begun

    def report(step: Step) -> None:
        check()
        if progress is not None:
            progress(step)

    report(Step("timing a sample", 0))
    clock.page = page_seconds(clock.seconds)
    with clock.alarmed("a sample was timed", LATE_SECONDS):
        plan = forecast(prepared, clock, requests)
    told(plan.words())
    prepared = replace(prepared, held_out=first_pictures(prepared.held_out, plan.held_out))
    evaluator, held_out = evaluators(
        prepared, batch_size=batch_size, cache=cache, progress=report, clock=clock
    )
    clock.keep_back(plan.after)
    others = None
    if workers.count > 1:
        names = {"storage": storage, "study_name": study_name}
        others = crew(
            prepared, {**(options or {}), **names}, batch_size, cache, workers, clock=clock
        )

    def after(trial: Progress) -> None:
        # As it really is: the sample may have been a large one, or other processes come and go.
        clock.keep_back(plan.at(clock.pace).after)
        best = "" if trial.best is None else f"best {prepared.spec.metric} {trial.best:.4f}"
        report(Step("trials", trial.finished, trial.total, best))

    def timed(configs: "Sequence[PruningConfig]") -> list[float]:
        from prunetune.deploy.saving import first_token_ms

        return first_token_ms(prepared.loaded, configs, prepared.calibration.samples)

    report(Step("trials", prepared.done, prepared.spec.trials))
    result = run_search(
        prepared.spec,
        evaluator,
        Watched(held_out, "held-out table", None, report, clock),
        out=prepared.out,
        storage=storage,
        study_name=study_name,
        on_progress=after,
        others=others,
        clock=clock,
        timer=timed,
    )
    return replace(result, seconds=time.monotonic() - begun)


def evaluators(
    prepared: Prepared,
    *,
    batch_size: int = BATCH_SIZE,
    cache: Cache = _CACHE,
    progress: Callable[[Step], None] = lambda step: None,
    clock: Clock | None = None,
) -> "tuple[Evaluator, Evaluator]":
    """Compute the unpruned references of both splits, or read them from the cache.

    Raises:
        OutOfTime: A run's time is up before they are there.
    """
    from prunetune.measure.evaluator import Evaluator

    if batch_size < 1:
        raise ConfigError(f"batch size: received {batch_size}, allowed 1 or more")
    splits = prepared.calibration, prepared.held_out
    depths = prepared.deepest, _HELD_OUT_DEEPEST
    total = sum(len(split) for split in splits)
    built: list[Evaluator] = []
    for split, deepest in zip(splits, depths, strict=True):
        begun = time.monotonic()
        before = len(built) and len(splits[0])
        built.append(
            Evaluator(
                prepared.loaded,
                split,
                deepest=deepest,
                batch_size=batch_size,
                cache=cache.path(),
                cache_limit=cache.limit,
                in_memory=cache.in_memory,
                own=prepared.spec.own_tokens,
                match=prepared.spec.match,
                levels=prepared.levels,
                progress=partial(_noted, progress, clock, before, total),
            )
        )
        if clock is not None:
            clock.unpruned = time.monotonic() - begun
    return built[0], built[1]


def _noted(
    progress: Callable[[Step], None], clock: Clock | None, before: int, total: int, done: int
) -> None:
    if clock is not None and clock.up:
        raise OutOfTime(
            f"the timeout of {clock.seconds:g} s has come before the first trial: {before + done} "
            f"of {total} samples were run unpruned; give more time, or fewer --samples"
        )
    progress(Step("unpruned reference", before + done, total))


class Watched:
    """An evaluator that reports the samples it has measured; otherwise the one it wraps.

    Args:
        inner: The evaluator.
        name: What is shown.
        total: Samples that will be measured, where that is known.
        report: Is told how far it is.
        clock: Ends what takes longer than a run may.
    """

    def __init__(
        self,
        inner: "Evaluator",
        name: str,
        total: int | None,
        report: Callable[[Step], None],
        clock: Clock | None = None,
    ) -> None:
        self._inner, self._name, self._total, self._report = inner, name, total, report
        self._done, self._clock = 0, clock or Clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def evaluate(self, config: "PruningConfig", *, answers: bool = True) -> Iterator[Sequence[Any]]:
        """Yield what the wrapped evaluator yields."""
        for batch in self._inner.evaluate(config, answers=answers):
            self._done += len(batch)
            self._clock.check()
            self._report(Step(self._name, self._done, self._total))
            yield batch
