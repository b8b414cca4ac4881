"""The card of a repository that holds configs: ``README.md``, a section for each file."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from prunetune.errors import ConfigError
from prunetune.hub.uris import Place, is_repo
from prunetune.messages import plain

CARD = "README.md"
LIBRARY = "prunetune"
TAGS = ("prunetune", "visual-token-pruning")

_MODEL = """# {title}

Configs of `prunetune`: which visual tokens of a vision-language model are dropped, where and how.
The weights are the base model's, unchanged.
"""
_USE = """```python
import prunetune

config = prunetune.PruningConfig.from_pretrained({arguments})
with prunetune.apply(model, config{processor}):
    model.generate(**inputs)
```

```bash
prunetune verify {uri} --data YOURS
prunetune serve {uri}
```
"""
_PROXY = (
    "The gap is 1 - cosine of the last prompt token's final hidden state, pruned against "
    "unpruned. It is a proxy, measured on the pictures of the search: verify on yours."
)
_HEAD = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.S | re.M)
_HEADING = ("", "gap", "95% interval", "top-1", "accuracy", "retention", "FLOPs", "")


def written(
    card: str,
    place: Place,
    config: Mapping[str, Any],
    digest: str,
    result: Mapping[str, Any] | None = None,
) -> str:
    """Return a repository's card with a section about one config.

    What else stands there, metadata too, stays: somebody wrote it.

    Args:
        card: The text that is there; empty for none.
        place: Of the config.
        config: The config as plain data.
        digest: Its digest.
        result: What ``search --json`` ended with, for the held-out table; None where it is not
            known.

    Raises:
        ConfigError: The metadata that is there cannot be read.
    """
    import yaml

    metadata, text = _parted(card)
    text = text.strip() or _MODEL.format(title=plain(place.repo)).strip()
    head = yaml.safe_dump(_metadata(metadata, config), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{_replaced(text, place, config, digest, result)}\n"


def _parted(card: str) -> tuple[dict[str, Any], str]:
    """Return a card's metadata and its text.

    Raises:
        ConfigError: The metadata cannot be read; it would be lost.
    """
    import yaml

    found = _HEAD.match(card)
    if found is None:
        return {}, card
    try:
        metadata = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, or too deep
        metadata = None
    if not isinstance(metadata, dict | None) or (metadata is None and found[1].strip()):
        raise ConfigError(
            f"the {CARD} of the repository has metadata that is not YAML, which a push would lose; "
            "mend it there first"
        )
    return metadata or {}, card[found.end() :]


def _metadata(known: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    data = {"library_name": LIBRARY, "pipeline_tag": "image-text-to-text", **known}
    tags = data.get("tags") or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    data["tags"] = tags + [tag for tag in TAGS if tag not in tags]
    base = base_model(config)
    if base is not None:
        given = data.get("base_model") or []
        given = [given] if isinstance(given, str) else list(given)
        data["base_model"] = given if base in given else [*given, base]
    return data


def base_model(config: Mapping[str, Any]) -> str | None:
    """Return the hub id of a config's model; None where it came from somewhere else."""
    model = config["model"]
    return model["name"] if model.get("revision") and is_repo(model["name"]) else None


def _replaced(text: str, place: Place, *about: Any) -> str:
    begin, end = (f"<!-- prunetune:{escape(place.file)} {word} -->" for word in ("begin", "end"))
    section = f"{begin}\n{_section(place, *about)}\n{end}"
    marked = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if marked.search(text):
        return marked.sub(lambda _: section, text, count=1)
    return f"{text}\n\n{section}"


def _section(
    place: Place, config: Mapping[str, Any], digest: str, result: Mapping[str, Any] | None
) -> str:
    parts = [f"## {plain(place.file)}", _facts(config, digest), _usage(place, config)]
    if result is not None:
        parts += ["### Held-out split", _table(_held_out(result)), _cell(result["verdict"])]
    return "\n\n".join([*parts, _PROXY])


def _usage(place: Place, config: Mapping[str, Any]) -> str:
    branch = {} if place.revision is None else {"revision": place.revision}
    named = {"filename": place.file} | branch
    more = "".join(f", {key}={value!r}" for key, value in named.items())
    processor = ", processor=processor" if config.get("pixels") else ""
    return _USE.format(
        arguments=f"{place.repo!r}{more}", processor=processor, uri=str(place)
    ).strip()


def _facts(config: Mapping[str, Any], digest: str) -> str:
    model, made = config["model"], config["provenance"]
    rows = [
        ("model", _code(model["name"]) if model["name"] else "-"),
        ("model type, decoder layers", f"{_code(model['model_type'])}, {model['num_layers']}"),
        ("model revision", model.get("revision") and _code(model["revision"])),
        *((f"stage at layer {s['layer']}", _stage(s)) for s in config["stages"]),
        ("pixels", config.get("pixels") and _code(config["pixels"])),
        ("budget", made.get("budget") and _pairs(made["budget"])),
        ("gap, calibration split", _gap(made)),
        ("gap, held-out split", _number(made.get("held_out_gap"))),
        ("mean retention (visual KV cache)", _number(made.get("mean_retention"))),
        ("prefill FLOPs of the language model", _number(made.get("flops_ratio"))),
        ("study, trial, seed", _study(made)),
        (
            "calibration digest",
            made.get("calibration_digest") and _code(made["calibration_digest"]),
        ),
        ("config digest", _code(digest)),
        ("made with", made.get("versions") and _pairs(made["versions"])),
        ("created", made.get("created")),
    ]
    return _table([("", ""), *((name, str(value)) for name, value in rows if value)])


def _stage(stage: Mapping[str, Any]) -> str:
    names = [f"{s['name']} {s.get('weight', 1):+.3g}" for s in stage.get("scorers") or ()]
    chosen = [part["name"] for key in ("selector", "restorer") if (part := stage.get(key))]
    how = "; ".join(filter(None, (", ".join(names), ", ".join(chosen))))
    return f"{100 * stage['retention']:.3g}% of the image tokens stay" + (f": {how}" if how else "")


def _gap(made: Mapping[str, Any]) -> str:
    low_high = made.get("gap_ci")
    interval = f" (95%: {low_high[0]:.4g} to {low_high[1]:.4g})" if low_high else ""
    return _number(made.get("gap")) + interval


def _study(made: Mapping[str, Any]) -> str:
    if made.get("study") is None:
        return ""
    return ", ".join(str(made.get(name)) for name in ("study", "trial", "seed"))


def _held_out(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the held-out table: the config, baselines by gap, unpruned."""
    best = result["best"]
    low, high = best["held_out_ci"]
    rows = [_HEADING, _row("**this config**", best, f"{low:.4g} to {high:.4g}")]
    others = sorted(
        result["baselines"], key=lambda b: (b["held_out_gap"] is None, b["held_out_gap"] or 0)
    )
    rows += [_row(_code(b["name"]), b) for b in others]
    accuracy = _percent(result["unpruned"]["accuracy"])
    return [*rows, ("unpruned", "0", "", "100.0%", accuracy, "1", "1", "")]


def _row(name: str, row: Mapping[str, Any], interval: str = "") -> tuple[str, ...]:
    return (
        name,
        _number(row["held_out_gap"]) or "-",
        interval,
        _percent(row["top1_agreement"]),
        _percent(row["accuracy"]),
        _number(row["mean_retention"]) or "-",
        _number(row["flops_ratio"]) or "-",
        str(row.get("notes") or ""),
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[_cell(cell) for cell in row] for row in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return a text that cannot leave its cell, nor be markup of a page."""
    return escape(plain(" ".join(text.split())), quote=False).replace("|", "\\|")


def _code(value: Any) -> str:
    text = str(value).replace("`", "")
    return f"`{text}`" if text else ""


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
