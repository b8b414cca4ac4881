"""Flags of ``search`` that are more than one value."""

import math
from collections.abc import Sequence
from typing import Any

from prunetune.errors import ConfigError
from prunetune.texts import parse_json


def space_of(
    scorers: str | None,
    stages: str | None,
    layers: str | None,
    selectors: str | None = None,
    mass: str | None = None,
    pixels: str | None = None,
) -> dict[str, Any]:
    """Parse what narrows the space."""
    space: dict[str, Any] = {}
    if scorers is not None:
        space["scorers"] = _names("--scorers", scorers)
    if selectors is not None:
        space["selectors"] = _names("--selectors", selectors)
    if mass is not None:
        space["mass"] = [_number("--mass", text) for text in _names("--mass", mass)]
    if pixels is not None:
        words: dict[str, bool] = {"yes": True, "no": False}
        space["pixels"] = words.get(pixels.strip())
        if space["pixels"] is None:
            space["pixels"] = [_number("--pixels", text) for text in _names("--pixels", pixels)]
    if stages is not None:
        from prunetune.space.narrowed import MOST_STAGES

        space["min_stages"], space["max_stages"] = low, high = _span("--stages", stages)
        if not 1 <= low <= high <= MOST_STAGES:
            raise ConfigError(
                f"--stages: received {stages!r}, allowed 1 to {MOST_STAGES}, or two of these, "
                "the lower first, with a dash between"
            )
    if layers is not None:
        space["layers"] = _span("--layers", layers)
    return space


def share_of(flag: str, text: str | None) -> float | None:
    """Return a share that people give; None where the flag was not given.

    Raises:
        ConfigError: It is no number, or a percentage; the message says which share that is.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and value <= 1:
        return value
    raise ConfigError(f"{flag}: received {text}, allowed a share from 0 to 1{hint(text)}")


def hint(text: str) -> str:
    """Return ``; for 25% write 0.25`` where a text is a percentage, else nothing."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        return ""
    if not (1 < value <= 100 or (text.strip().endswith("%") and 0 < value <= 100)):
        return ""
    return f"; for {value:g}% write {value / 100:.6g}"


def budget_of(flags: "dict[str, str | None]") -> dict[str, float]:
    """Parse the budget; with a colon between two numbers it is a range."""
    given = {name: text for name, text in flags.items() if text is not None}
    if len(given) > 1:
        shown = " and ".join(f"--{name.replace('_', '-')} {text}" for name, text in given.items())
        raise ConfigError(f"received {shown}; a study has one budget, give one")
    found: dict[str, float] = {}
    for name, text in given.items():
        low, colon, high = text.partition(":")
        flag = f"--{name.replace('_', '-')}"
        if name != "kv_mib" and (said := hint(low) or hint(high)):
            raise ConfigError(f"{flag}: received {text}, allowed a share from 0 to 1{said}")
        try:
            found = {name: float(low)} | ({"up_to": float(high)} if colon else {})
        except ValueError:
            raise ConfigError(
                f"{flag}: received {text!r}, allowed a number, or for "
                "--objective pareto two with a colon between, e.g. 0.05:0.5"
            ) from None
    return found


_RESERVED = ("conversation", "tokenize", "return_dict", "return_tensors", "processor_kwargs")


def template_of(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Parse ``--template-arg key=value``; values are JSON where they can be, else text.

    Raises:
        ConfigError: One has no ``=``, is given twice, is not a number, a text or true or false, or
            is not the template's.
    """
    found: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier() or key in _RESERVED:
            raise ConfigError(
                f"--template-arg: received {text!r}, allowed KEY=VALUE, an option of the model's "
                "chat template, e.g. add_generation_prompt=false"
            )
        if key in found:
            raise ConfigError(f"--template-arg: received {key!r} twice, allowed once")
        found[key] = json_or_text(value)
        if not isinstance(found[key], str | bool | int | float):
            raise ConfigError(
                f"--template-arg: received {text!r}, allowed a text, a number, true or false"
            )
    return found or None


def json_or_text(value: str) -> Any:
    """Return what ``KEY=VALUE`` sets: JSON where it can be, else the text."""
    try:
        return parse_json(value)
    except ValueError:
        return value


def promise_of(
    most: tuple[float | None, float | None, float | None], cheapest: str | None
) -> dict[str, Any]:
    """Return what flags promise, and the range of costs in which the cheapest is looked for.

    Args:
        most: ``--max-drop``, ``--max-gap`` and ``--min-agreement``.
        cheapest: ``--cheapest``.
    """
    from prunetune.promise import promised

    try:
        promise = promised(*most)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if cheapest is not None and cheapest not in ("kv", "flops", "ms"):
        raise ConfigError(f"--cheapest: received {cheapest!r}, allowed kv, flops or ms")
    if promise is None:
        if cheapest is not None:
            raise ConfigError("--cheapest goes with --max-drop, --max-gap or --min-agreement")
        return {}
    if cheapest == "ms":
        promise["cheapest"] = "ms"
    # FLOPs are nearer to milliseconds than the cache is.
    wide = {"flops": 0.1, "up_to": 0.8} if cheapest in ("flops", "ms") else {}
    return {"promise": promise} | wide


def optional_names(flag: str, text: str | None) -> list[str] | None:
    """Parse names with commas between; None where the flag was not given."""
    return None if text is None else _names(flag, text)


def _names(flag: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{flag}: received {text!r}, allowed names with commas between")
    return names


def _number(flag: str, text: str) -> float:
    if said := hint(text):
        raise ConfigError(f"{flag}: received {text}, allowed numbers from 0 to 1{said}")
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"{flag}: received {text!r}, allowed numbers from 0 to 1 with commas between"
        ) from None


def _span(flag: str, text: str) -> Sequence[int]:
    low, dash, high = text.partition("-")
    try:
        return int(low), int(high if dash else low)
    except ValueError:
        raise ConfigError(
            f"{flag}: received {text!r}, allowed a number or two with a dash between, e.g. 1-3"
        ) from None


# Flags that name something: an empty text is a variable that was not set, and no name.
_NAMED = frozenset(
    ("model", "data", "held_out", "out", "output", "spec", "storage", "revision", "cache_dir")
)


def refuse_empty(given: dict[str, Any]) -> None:
    """Refuse an empty text where a name belongs.

    Raises:
        ConfigError: There is one.
    """
    for key in _NAMED & given.keys():
        if given[key] == "":
            flag = key.replace("_", "-")
            raise ConfigError(f"--{flag}: received '', allowed a name; or leave it out")
