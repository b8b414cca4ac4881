"""Studies for tests of what people review: trials of the embedded model, with hostile names."""

import json
import threading
from contextlib import contextmanager
from functools import cache

import optuna
from cli_runner import picture
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from prunetune.config import ModelRef, PruningConfig
from prunetune.models import load_model
from prunetune.review.dashboard.artifacts import ArtifactFolder
from prunetune.review.dashboard.dashboard import Dashboard
from prunetune.review.facts import study_facts
from prunetune.spec import StudySpec
from prunetune.study.database.connect import open_storage
from prunetune.study.database.storage import quiet
from prunetune.study.database.urls import storage_url
from prunetune.study.prepare import load_data
from prunetune.study.trials.trials import describe_config

SCRIPT = "<script>alert(1)</script>"
ODD = "a 'quoted\" <b>&amp; *name* |.png"
NAME = f"tiny/keep0.25/{SCRIPT}"


def write_pictures(folder, count=4):
    """Write pictures with odd names and a question that is a script."""
    folder.mkdir(parents=True)
    rows = []
    for k in range(count):
        name = ODD if k == 0 else f"{k} {ODD}"
        picture(k, (128, 128)).save(folder / name)
        rows.append({"file_name": name, "question": f"{SCRIPT} **what** color ?", "answer": "=1+1"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@cache
def layers():
    return load_model("tiny").model.config.text_config.num_hidden_layers


def config(layer, weight):
    depth = layers()
    ref = ModelRef(model_type="llava_next", num_layers=depth, name="tiny")
    scorers = [{"name": "coverage"}, {"name": "cls_attention", "weight": weight}]
    share = (0.25 * depth - layer) / (depth - layer)
    stages = ({"layer": layer, "retention": share, "scorers": scorers},)
    return PruningConfig(model=ref, stages=stages)


def add_trial(study, value, layer=1, weight=0.5, state=TrialState.COMPLETE, samples=3):
    found = config(layer, weight)
    attrs = describe_config(found) | {
        "config_digest": found.digest(),
        "samples_used": samples,
        "gap": value,
        "kl": 2 * value,
        "top1_agreement": 1 - value,
        "accuracy": 1 - 2 * value,
    }
    several = len(study.directions) > 1
    known = None if state is TrialState.FAIL else [value, 0.25 + layer / 100][: 1 + several]
    study.add_trial(
        optuna.trial.create_trial(
            state=state,
            values=known,
            params={"first_layer": layer / 10, "weight.cls_attention": (weight + 1) / 2},
            distributions=dict.fromkeys(
                ("first_layer", "weight.cls_attention"), FloatDistribution(0.0, 1.0)
            ),
            user_attrs=attrs,
            intermediate_values={}
            if several
            else {k: value * (0.6 + 0.8 * k / samples) for k in range(samples)},
        )
    )


def make_study(out, url=None, name=NAME, trials=6, data=None, directions=1, wanted=100):
    """Make a study in a folder, or in a database; return it."""
    source = out / "data"
    if data is None and not source.exists():
        write_pictures(source)
    storage = open_storage(storage_url(out, url))
    with quiet():
        minimised = ["minimize"] * directions
        study = optuna.create_study(study_name=name, storage=storage, directions=minimised)
        study.set_metric_names(["cosine", "mean_retention"][:directions])
        study.set_user_attr("model", "tiny")
        spec = StudySpec(data=data or str(source), trials=wanted)
        study.set_user_attr("spec", spec.model_dump(mode="json"))
        for k in range(trials):
            add_trial(study, 0.2 - 0.02 * k, layer=k % 3, weight=0.1 * k)
    return study


def make_example(out):
    """Make a study as a search leaves it, for pictures in the documentation."""
    study = make_study(out, name="tiny/keep0.25/cosine", data="tiny", trials=0, wanted=24)
    for k in range(24):
        value = 0.05 + 0.12 / (1 + k) + 0.03 * ((7 * k) % 5)
        stopped = k > 4 and value > 0.09
        state = TrialState.PRUNED if stopped else TrialState.COMPLETE
        weight = ((3 * k) % 19) / 10 - 0.9
        add_trial(study, value, k % 4, weight, state, samples=16 if stopped else 64)
    return study


@contextmanager
def serving(study, out, tiny):
    """Serve a dashboard of the studies of ``study``'s database, notes and pictures written."""

    def prepare(publisher):
        publisher.loaded = tiny
        publisher.samples = load_data(study_facts(publisher.study).spec)[0].samples

    board = Dashboard(study._storage, ArtifactFolder(out / "artifacts"), prepare=prepare)
    board.refresh()
    thread = threading.Thread(target=board.serve, daemon=True)
    thread.start()
    yield board
    board.stop()
    thread.join(20)
    assert not thread.is_alive()
