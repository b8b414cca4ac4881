"""Which configs vLLM can run, and why not others; knows the config format, not vLLM."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunetune.config import PruningConfig, Stage
from prunetune.errors import ConfigError
from prunetune.families import FAMILIES
from prunetune.pixels import shrinks
from prunetune.registry import Tunable
from prunetune.restorers import RESTORERS
from prunetune.scorers import SCORERS
from prunetune.scorers.base import LAYER_NEEDS
from prunetune.selectors import SELECTORS
from prunetune.space.narrowed import SELECTORS as SEARCHED

VERSIONS = ("0.32", "0.34")
"""The first release of vLLM that has what the plug-in needs, and the first one not looked at."""


@dataclass(frozen=True)
class Architecture:
    """How vLLM has a family.

    Attributes:
        name: Of the class, as checkpoints call it (``architectures`` in config.json).
        module: Of vLLM, with its own class.
        own: That class's name there.
        videos: Whether a video's tokens are one run of its prompt, which can be shortened.
        in_views: Whether a picture's tokens are a run for each of its views, with text between.
    """

    name: str
    module: str
    own: str
    videos: bool = False
    in_views: bool = False


def _named(name: str, module: str, *, own: str = "", **more: bool) -> Architecture:
    return Architecture(name, f"vllm.model_executor.models.{module}", own or name, **more)


ARCHITECTURES = {
    "idefics3": _named("Idefics3ForConditionalGeneration", "idefics3", in_views=True),
    "internvl": _named(
        "InternVLForConditionalGeneration", "interns1", own="InternS1ForConditionalGeneration"
    ),
    "llava": _named("LlavaForConditionalGeneration", "llava"),
    "llava_next": _named("LlavaNextForConditionalGeneration", "llava_next"),
    "llava_onevision": _named(
        "LlavaOnevisionForConditionalGeneration", "llava_onevision", videos=True
    ),
    "qwen2_5_vl": _named("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", videos=True),
    "qwen2_vl": _named("Qwen2VLForConditionalGeneration", "qwen2_vl", videos=True),
    "qwen3_vl": _named("Qwen3VLForConditionalGeneration", "qwen3_vl"),
    "smolvlm": _named("SmolVLMForConditionalGeneration", "smolvlm", in_views=True),
}
"""By model type. Of other families a picture's tokens lie in several runs that are no views of it,
or nobody has looked."""

UNKNOWN = LAYER_NEEDS | {"question"}
"""What a scorer or selector cannot be given there: vLLM encodes a picture before, and apart from,
the prompt that it stands in, and keeps the result for other prompts."""


def problem(config: PruningConfig) -> str | None:
    """Return why vLLM cannot run a config, with what to do instead; None where it can."""
    if config.model.model_type not in ARCHITECTURES:
        return (
            f"model_type {config.model.model_type} is not supported in vLLM (supported: "
            f"{', '.join(ARCHITECTURES)}); run it in transformers"
        )
    if shrinks(config.pixels):
        return (
            "it makes pictures smaller, which is not done in vLLM yet; set the engine's own option "
            "(prunetune export --show-native prints it), and search with --engine vllm"
        )
    layers = [stage.layer for stage in config.stages]
    if layers != [0]:
        shown = ", ".join(str(layer) for layer in layers if layer) or "none"
        return (
            f"it has a stage at layer {shown}, and vLLM can only drop tokens before the language "
            "model; search with --engine vllm (or --layers 0-0)"
        )
    [stage] = config.stages
    if stage.mass:
        return (
            f"its mass is {stage.mass:g}, a bias of keys that vLLM's attention does not take; "
            "search with --engine vllm (or --mass 0)"
        )
    if config.prompt_dependent:
        return (
            f"{_asking(config)} reads the question, and vLLM encodes a picture once for all "
            "questions; search with --engine vllm"
        )
    if ARCHITECTURES[config.model.model_type].in_views and not _by_view(stage):
        name = "top" if stage.selector is None else stage.selector.name
        if stage.selector is None and stage.restorer is not None and stage.restorer.chooses():
            return (
                f"its restorer {stage.restorer.name} chooses over the whole picture, and "
                f"{config.model.model_type} needs a share for each view; search with --engine vllm"
            )
        return (
            f"each view of a picture is a run of its own in {config.model.model_type}'s prompt, "
            "and vLLM has to know beforehand how many tokens of each stay: "
            f'its selector ({name}) needs "scope": "view"; search with --engine vllm'
        )
    return None


def _by_view(stage: Stage) -> bool:
    return stage.selector is not None and stage.selector.scope == "view"


def by_view(config: PruningConfig) -> PruningConfig:
    """Return a config whose stages give each view its share, where vLLM needs that of a family."""
    arch = ARCHITECTURES.get(config.model.model_type)
    if arch is None or not arch.in_views:
        return config
    data = config.model_dump(mode="json") | {"version": 2}
    for stage in data["stages"]:
        stage["selector"] = {**(stage.get("selector") or {"name": "top"}), "scope": "view"}
    return PruningConfig.parse(data)


def _asking(config: PruningConfig) -> str:
    [stage] = config.stages
    scorers = [f"scorer {s.name}" for s in stage.scorers if "question" in s.needs]
    selector = stage.selector
    if selector is not None and "question" in selector.needs:
        scorers.append(f"selector {selector.name}")
    # At layer 0 last_query has no input, in transformers either, and adds nothing.
    return " and ".join(scorers) or "scorer last_query"


def engines(config: PruningConfig) -> dict[str, str | None]:
    """Return where a config runs: by engine None, or why not."""
    return {"transformers": None, "vLLM": problem(config)}


def narrowed(model_type: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's ``[space]`` narrowed to configs that run in vLLM.

    Args:
        model_type: Of the model.
        space: What else was asked for, by names of its fields.

    Raises:
        ConfigError: Something was asked for that vLLM cannot apply.
    """
    if model_type not in ARCHITECTURES:
        raise ConfigError(
            f"--engine vllm: received a model of type {model_type}, allowed: "
            f"{', '.join(ARCHITECTURES)}; search without --engine"
        )
    can = applicable()
    if ARCHITECTURES[model_type].in_views:
        # A selector takes the place of their choice.
        can["restorers"] = [name for name in can["restorers"] if not RESTORERS.get(name).chooses()]
    for kind, names in can.items():
        wrong = [n for n in space.get(kind, ()) if n not in names and n not in ("none", "top")]
        if wrong:
            raise ConfigError(
                f"--{kind}: received {', '.join(wrong)}, allowed with --engine vllm: "
                f"{', '.join(names)}"
            )
    for field, allowed in (("mass", (0.0,)), ("layers", (0, 0)), ("max_stages", 1)):
        value = space.get(field, allowed)
        if (tuple(value) if isinstance(value, list | tuple) else value) != allowed:
            shown = {"mass": "0", "layers": "0-0", "max_stages": "1"}[field]
            flag = "stages" if field == "max_stages" else field
            raise ConfigError(
                f"--{flag}: received another value than {shown}, allowed with --engine vllm: "
                f"{shown}, which drops tokens before the language model; leave it out"
            )
    if space.get("pixels"):
        raise ConfigError(
            "--pixels: received levels, allowed with --engine vllm: no; give the engine smaller "
            "pictures by its own option (--max-pixels searches with it), or leave it out"
        )
    triples = not FAMILIES.get(model_type).can_pack
    made = {
        "scorers": [name for name in can["scorers"] if name != "random"],
        "positions": ["original"] if triples else ["original", "packed"],
        **space,
        "parts": "layer-0",
        "mass": [0.0],
    }
    searched = made.get("selectors", SEARCHED)
    ranges = _unasking(searched)
    if ARCHITECTURES[model_type].in_views:
        ranges |= _scoped(searched, made.get("ranges", {}))
    return made | {"ranges": {**ranges, **made.get("ranges", {})}}


def _scoped(searched: Iterable[str], asked: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return ranges that give each view its share."""
    for name, values in asked.items():
        if name.endswith(".scope") and list(values) != ["view"]:
            raise ConfigError(
                f"ranges.{name}: received {list(values)}, allowed with --engine vllm for models "
                'whose views stand apart in the prompt: ["view"]; leave it out'
            )
    return {f"{name}.scope": ["view"] for name in searched}


def _unasking(searched: Iterable[str]) -> dict[str, list[Any]]:
    """Return ranges that keep what reads the question, if it is tuned, at its default."""
    found: dict[str, list[Any]] = {}
    for name in searched:
        kind = SELECTORS.get(name)
        if (plain := kind(name=name)).prompt_dependent:
            continue
        for field, info in kind.model_fields.items():
            for tunable in (m for m in info.metadata if isinstance(m, Tunable)):
                high = tunable.choices[-1] if tunable.choices else tunable.high
                if kind.model_validate({"name": name, field: high}).prompt_dependent:
                    found[f"{name}.{field}"] = [getattr(plain, field)]
    return found


def applicable() -> dict[str, list[str]]:
    """Return the names of scorers, selectors and restorers that vLLM can apply."""
    needs = {name: SCORERS.get(name)(name=name).needs for name in SCORERS}
    return {
        "scorers": [name for name in SCORERS if not needs[name] & UNKNOWN],
        "selectors": [n for n in SELECTORS if not SELECTORS.get(n)(name=n).prompt_dependent],
        "restorers": list(RESTORERS),
    }
