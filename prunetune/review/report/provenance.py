"""Where a study's figures come from, and how to get them again."""

import shlex
from typing import Any

from prunetune.budget import flops_told
from prunetune.models.versions import versions
from prunetune.review.facts import StudyFacts


def provenance_rows(facts: StudyFacts, shown: str) -> list[tuple[str, str]]:
    """Return where everything comes from.

    Args:
        facts: Of the study.
        shown: Folder or storage URL of the study, without a password.
    """
    spec, attrs = facts.spec, facts.attrs
    best = facts.best
    config = best.config if best else None
    model = config.model if config else None
    rows = [
        ("study", facts.name),
        ("stored in", shown),
        ("model", f"{spec.model}" + (f", revision {spec.revision}" if spec.revision else "")),
        ("model type", f"{model.model_type}, {model.num_layers} decoder layers" if model else "-"),
        ("model fingerprint", (model.fingerprint if model else None) or "-"),
        ("budget", spec.budget_shown),
        ("metric", ", ".join(facts.axis(k) for k in range(len(facts.metrics)))),
        ("weights digest", str(attrs.get("weights_digest") or "-")),
        ("calibration data", _source(spec.data, spec.samples, facts.sample_count)),
        ("calibration digest", str(attrs.get("digest", "-"))),
        ("held-out data", spec.held_out or "the other side of the calibration source"),
        ("config digest", config.digest() if config else "-"),
        ("seed", f"{spec.seed} (sampler, split and order of samples)"),
        ("sampler", f"{spec.sampler}, {spec.startup} trials drawn at random first"),
        ("trial pruner", spec.trial_pruner),
        ("made with", _versions(attrs.get("versions"))),
        ("reported with", _versions(versions())),
    ]
    if facts.detail is not None:
        rows.append(("result of", str(facts.detail.get("created", "-"))))
        if flops := _flops(facts.detail["result"]):
            rows.append(("FLOPs of a mean prompt", flops_told(flops)))
    return [(name, str(value)) for name, value in rows]


def _flops(result: Any) -> Any:
    """Return the FLOPs of the config that a result is about."""
    if "best" in result:
        return result["best"].get("flops")
    judged = result.get("decision") or {}
    wanted = judged.get("trial", result.get("knee"))
    return next((p.get("flops") for p in result["points"] if p["trial"] == wanted), None)


def command(facts: StudyFacts) -> str:
    """Return the command that repeats a study from its spec."""
    words = ["prunetune", "search", "--spec", "study.toml", "--out", "again"]
    if facts.name != facts.spec.study_name:
        words += ["--study", facts.name]
    return shlex.join(words)


def _source(data: str | None, samples: int | None, count: int) -> str:
    limit = f", at most {samples} samples" if samples else ""
    return f"{data or 'tiny'}{limit}" + (f" ({count} samples)" if count else "")


def _versions(found: Any) -> str:
    known = found if isinstance(found, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in known.items()) or "-"
