"""Studies of every kind, made in memory without a model: what a page about a study must bear."""

import math
import random
from datetime import datetime, timedelta

import optuna
from fakes import Fake, Result
from optuna.trial import TrialState

from prunetune.calibration import Sample
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.database.storage import quiet
from prunetune.study.trials.trials import describe_config

NASTY = "<script>alert(1)</script>"
NASTY_FILE = "it's/\"a\"/<b>&amp;'file'.png"
SAMPLES = 24
BEGUN = datetime(2026, 11, 20, 12, 0, 0)


def made_space(keep=0.25):
    return Space(SpaceSpec(), keep, Fake(digest="abc").facts())


def made_study(
    trials=30, *, seed=0, name="made", running=0, failed=0, stopped=0.5, presets=2, wanted=40, **kw
):
    """Return a study in memory.

    Args:
        trials: Complete ones and ones that were stopped early.
        running: Trials that run.
        failed: Trials that failed.
        stopped: Share of the trials that were stopped early.
        presets: The first so many trials are called presets.
        wanted: Trials that the spec asks for.
        kw: ``directions`` and ``metric_names`` of a study with several objectives; spec's fields.
    """
    directions = kw.pop("directions", ["minimize"])
    metrics = kw.pop("metric_names", ["cosine"] if len(directions) == 1 else None)
    with quiet():
        study = optuna.create_study(study_name=name, directions=directions)
        if metrics:
            study.set_metric_names(metrics)
    spec = StudySpec(**{"model": "fake", "trials": wanted, **kw})
    study.set_user_attr("spec", spec.model_dump(mode="json"))
    study.set_user_attr("digest", "abc")
    study.set_user_attr("versions", {"prunetune": "0.1.0"})
    draw, space, model = random.Random(seed), made_space(spec.keep), Fake()
    for k in range(trials):
        early = len(directions) == 1 and k > 0 and draw.random() < stopped
        study.add_trial(_finished(k, draw, space, model, early, k < presets, len(directions)))
    for k in range(failed):
        attrs = {"failure": f"RuntimeError: no memory {NASTY}"}
        study.add_trial(_trial(trials + k, TrialState.FAIL, attrs))
    for k in range(running):
        study.add_trial(_trial(trials + failed + k, TrialState.RUNNING, {}))
    return study


def _finished(k, draw, space, model, early, preset, objectives):
    units = {d.name: draw.random() for d in space.dimensions()}
    config = space.decode(units)
    bad = model.badness(config)
    noise = random.Random(7)
    gaps = [bad * noise.uniform(0.5, 1.5) for _ in range(SAMPLES)]
    seen = gaps[: SAMPLES // 3] if early else gaps
    attrs = describe_config(config) | {
        "config_digest": config.digest(),
        "samples_used": len(seen),
        "gap": math.fsum(seen) / len(seen),
        "kl": 2 * math.fsum(seen) / len(seen),
        "top1_agreement": 0.75,
        "accuracy": 0.5,
    }
    if preset:
        attrs["preset"] = ("topv", "uniform", "random")[k % 3]
    mean = math.fsum(gaps) / len(gaps)
    if objectives > 1:
        return _trial(k, TrialState.COMPLETE, attrs, [mean, draw.random()][:objectives])
    reports = dict(enumerate(seen)) | ({SAMPLES: mean} if early else {})
    state = TrialState.PRUNED if early else TrialState.COMPLETE
    return _trial(k, state, attrs, [mean], reports)


def _trial(k, state, attrs, values=None, reports=None):
    ended = state.is_finished()
    return optuna.trial.FrozenTrial(
        number=k,
        state=state,
        value=values[0] if values and len(values) == 1 else None,
        values=values if values and len(values) > 1 else None,
        datetime_start=BEGUN + timedelta(seconds=k),
        datetime_complete=BEGUN + timedelta(seconds=k + 0.5) if ended else None,
        params={},
        distributions={},
        user_attrs=attrs,
        system_attrs={},
        intermediate_values=reports or {},
        trial_id=k,
    )


class Asked(Fake):
    """A fake model whose samples have questions, types and ids."""

    def __init__(self, count=48, types=("color", "count", NASTY), **kw):
        super().__init__(count, **kw)
        self.samples = [
            Sample((), f"what {NASTY} {i} ?", "red", types and types[i % len(types)], f"i{i // 4}",
                   f"{NASTY_FILE}-{i}")
            for i in range(count)
        ]  # fmt: skip


__all__ = ["NASTY", "NASTY_FILE", "Asked", "Result", "made_space", "made_study"]
