"""``status``: how far a study is."""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli._app import AsJson, verb
from prunetune.cli._output import Output, number

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from prunetune.study.find import Found


@verb("status", "prunetune status studies/tiny-keep0.25")
def status(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A run's folder, its study.db or a storage URL.")
    ],
    name: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Of several studies, this one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a study's trials by state, its best trial, and how to resume it."""
    from prunetune.study.database.place import locate

    locate(study)
    from prunetune.cli._environment import quieten_optuna
    from prunetune.study.database.foreign import FAILURE, REASON
    from prunetune.study.find import find_study
    from prunetune.study.trials.best import FINISHED, on_plateau

    quieten_optuna()
    found = find_study(study, name)
    trials = found.study.get_trials(deepcopy=False)
    states = Counter(trial.state.name.lower() for trial in trials)
    finished = sum(trial.state in FINISHED for trial in trials)
    plateau = on_plateau(found.study, found.spec.patience) and finished < found.spec.trials
    ended = _ended(found)
    resume = _resume(found, finished, plateau, ended is not None)
    out = Output(as_json)
    out.line(f"study: {found.study.study_name} in {found.shown}")
    out.line(f"trials: {_counted(trials, found.spec.trials)}")
    others = [t.number for t in trials if t.user_attrs.get(FAILURE) == REASON]
    if others:
        shown = ", ".join(map(str, others[:10])) + (", ..." if len(others) > 10 else "")
        out.line(f"left out: trial {shown}: {REASON}")
    best = _best(out, found)
    points = _front(out, found) if found.spec.pareto else None
    if ended is not None:
        out.line(f"result: {ended['verdict']}")
    elif finished >= found.spec.trials:
        out.line("result: none yet: all trials have ended, held-out data is still to be measured")
    if plateau:
        out.line(f"stopped: no better trial in {found.spec.patience}")
    out.line(f"resume: {resume}")
    out.finish(
        {
            "study": found.study.study_name,
            "storage": found.shown,
            "model": found.spec.model,
            "keep": found.spec.keep,
            "budget": found.spec.budget,
            "trials": dict(states),
            "finished": finished,
            "left_out": others,
            "wanted": found.spec.trials,
            "best": best,
            "front": points,
            "judged": ended and ended.get("judged"),
            "tick": ended and ended.get("tick"),
            "verdict": ended and ended["verdict"],
            "decision": ended and ended.get("decision"),
            "stopped": plateau,
            "resume": resume,
        }
    )


def _best(out: Output, found: "Found") -> dict[str, Any] | None:
    """Show the best trial, and return it as data; None before there is one."""
    from prunetune.study.trials.best import best_complete, metric_of

    best = best_complete(found.study)
    if best is None:
        return None
    described = {
        "trial": best.number,
        found.spec.metric: metric_of(best),
        "schedule": best.user_attrs.get("schedule"),
        "weights": best.user_attrs.get("weights"),
        "preset": best.user_attrs.get("preset"),
    }
    preset = f" (preset {described['preset']})" if described["preset"] else ""
    out.line(f"best: trial {best.number}{preset}, {found.spec.metric} {number(metric_of(best))}")
    out.line(f"  schedule {described['schedule']}")
    out.line(f"  weights {described['weights']}")
    return described


def _front(out: Output, found: "Found") -> list[dict[str, Any]]:
    """Show the trials that none beats in both metric and cost, and return them as data."""
    from prunetune.study.trials.best import COST_NAMES, cost_of, front, metric_of

    cost, metric = COST_NAMES[found.spec.kind], found.spec.metric
    points = [
        {"trial": t.number, metric: metric_of(t), cost: cost_of(t)} for t in front(found.study)
    ]
    out.line("front:")
    rows = [(str(p["trial"]), f"{p[cost]:.4g}", number(p[metric])) for p in points]
    out.table((">trial", f">{cost}", f">{metric}"), rows)
    return points


def _ended(found: "Found") -> dict[str, Any] | None:
    """Return what the study ended with, unless trials have ended since."""
    from prunetune.study.outcome.record import FRONT, KEY, read_record

    attrs = found.study.user_attrs
    record = read_record(attrs, FRONT if found.spec.pareto else KEY)
    trials = found.study.get_trials(deepcopy=False)
    if record is None or record["ended"] != sum(t.state.is_finished() for t in trials):
        return None
    return dict(record["result"])


def _counted(trials: "Sequence[FrozenTrial]", wanted: int) -> str:
    """Return the trials by state; those that wait or run are none of the finished ones."""
    from prunetune.study.trials.best import FINISHED

    parts = []
    for done in (True, False):
        states = Counter(t.state.name.lower() for t in trials if (t.state in FINISHED) == done)
        parts.append(", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    ended = sum(trial.state in FINISHED for trial in trials)
    shown = f"{ended} of {wanted} finished ({parts[0] or 'none'})"
    return f"{shown}, {parts[1]}" if parts[1] else shown


def _resume(found: "Found", finished: int, plateau: bool, ended: bool) -> str:
    """Return the command that lets the study go on; one that has its result needs more to do."""
    from prunetune.study.places import known_as

    words = ["prunetune", "search"]
    if found.folder is not None:
        words += ["--spec", str(found.folder / "spec.toml"), "--out", str(found.folder)]
    else:
        return "run the command that started it again, with the same --storage"
    if found.study.study_name != known_as(found.spec, [found.study.study_name]):
        words += ["--study", found.study.study_name]
    if ended and finished >= found.spec.trials:
        words += ["--trials", str(2 * found.spec.trials)]
    if plateau:
        words += ["--patience", "0"]
    return shlex.join(words)
