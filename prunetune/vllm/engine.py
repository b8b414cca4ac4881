"""What is set in vLLM before it loads a model, and what it is refused to start with."""

import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any, NoReturn

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError, PrunetuneError, UnsupportedModelError
from prunetune.hub.files import fetch
from prunetune.hub.uris import is_uri, parse
from prunetune.vllm.fits import ARCHITECTURES, VERSIONS, problem
from prunetune.vllm.switch import ENVIRONMENT

COUNTED_BY = "anyres_max_9"
"""The limit of LLaVA-OneVision's tiles that vLLM has written into its counts."""


@cache
def _load(path: str) -> PruningConfig:
    config = PruningConfig.load(path)
    reason = problem(config)
    if reason is not None:
        raise ConfigError(f"{path} cannot run in vLLM: {reason}")
    return config


def _pin() -> None:
    """Put the commit into the address of a config on the hub, for the processes started later.

    All of an engine then prune alike, whatever is pushed meanwhile, and ask the hub once.
    """
    address = os.environ[ENVIRONMENT]
    if is_uri(address):
        _, place = fetch(parse(address))
        os.environ[ENVIRONMENT] = str(place)


def current() -> PruningConfig:
    """Return the config of this process.

    Raises:
        ConfigError: It cannot be read, or vLLM cannot run it.
    """
    return _load(os.environ[ENVIRONMENT])


def switch_on() -> None:
    """Put the pruning class in the place of vLLM's own, and checks before the start of an engine.

    Raises:
        PrunetuneError: The config cannot run in this vLLM.
    """
    with_one_line(_switch_on)


def pruning_class() -> tuple[str, str]:
    """Return the architecture that is pruned, and the class in ``models.py`` that does it.

    vLLM keeps what it learnt of a class under its name and the file's hash, across its releases: so
    its release is a part of the name.
    """
    config = current()
    arch = ARCHITECTURES[config.model.model_type].name
    return arch, f"{arch}__{_release()}__{config.positions}"


def _switch_on() -> None:
    _pin()
    config = current()
    arch, name = pruning_class()
    from vllm import ModelRegistry
    from vllm.model_executor.models import config as hooks

    known = hooks.MODELS_CONFIG_MAP
    if not hasattr(known.get(arch), "_prunetune"):
        known[arch] = checking(known.get(arch))
    if config.positions == "original":
        mend_cpu_runner()
    # By name: vLLM then looks at it in a process of its own, for a server's processes must not
    # touch a device before they start others.
    ModelRegistry.register_model(arch, f"prunetune.vllm.models:{name}")


def with_one_line(do: Callable[[], None]) -> None:
    """Run a check; where a server is being started, a refusal ends it with one line and status 2.

    Raises:
        PrunetuneError: A refusal, in any other process.
    """
    try:
        do()
    except PrunetuneError as error:
        if not _serving():
            raise
        _leave(error)


def _serving() -> bool:
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(main, "name", "").startswith("vllm.") or os.path.basename(sys.argv[0]) == "vllm"


def _leave(error: PrunetuneError) -> NoReturn:
    sys.stderr.write(f"error: prunetune: {' '.join(str(error).split())}\n")
    raise SystemExit(2) from None


def _release() -> str:
    """Return vLLM's minor release in the spelling of a name, ``0_32``.

    Raises:
        UnsupportedModelError: It is not among those that were looked at.
    """
    import vllm

    shown = str(getattr(vllm, "__version__", "")) or version("vllm")
    parts = shown.split(".")[:2]
    here = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
    first, end = (tuple(map(int, text.split("."))) for text in VERSIONS)
    if not first <= here < end:
        raise UnsupportedModelError(
            f"this is vLLM {shown}, and the plug-in was made for {VERSIONS[0]} up to (not "
            f"including) {VERSIONS[1]}; install one of these, or start without {ENVIRONMENT}"
        )
    return "_".join(parts)


def checking(before: Any) -> type:
    """Return vLLM's hook for an architecture's settings, with our checks behind its own.

    Args:
        before: The hook that vLLM has, or None.
    """

    class Checking:
        """Called by vLLM once it knows all settings, and before it starts further processes."""

        _prunetune = True

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            if before is not None:
                before.verify_and_update_config(vllm_config)
            if not os.environ.get(ENVIRONMENT):
                return
            with_one_line(lambda: check_engine(vllm_config, current()))
            if is_gapped(current()):
                # What vLLM looks for to keep rows of positions. The text model's own settings stay:
                # it is given one row, as plain positions.
                vllm_config.model_config.hf_config.mrope_section = [1, 0, 0]

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            if before is not None:
                before.verify_and_update_model_config(model_config)

    return Checking


def is_gapped(config: PruningConfig) -> bool:
    """Tell whether plain rotary positions have gaps where tokens were dropped."""
    return config.positions == "original" and not config.model.model_type.startswith("qwen")


def check_engine(vllm_config: Any, config: PruningConfig) -> None:
    """Raise unless an engine of these settings prunes every picture as the config says.

    Raises:
        PrunetuneError: One line: the setting, and what to do.
    """
    from prunetune.runtime.apply import check_fits
    from prunetune.vllm.choosing import family_like

    parallel = vllm_config.parallel_config
    multimodal = vllm_config.model_config.multimodal_config
    compilation = vllm_config.compilation_config
    lora = vllm_config.lora_config
    refused = {
        "--pipeline-parallel-size above 1": parallel.pipeline_parallel_size > 1,
        "--mm-encoder-tp-mode data": multimodal.mm_encoder_tp_mode == "data",
        "--enable-mm-embeds (features alone cannot be scored)": multimodal.enable_mm_embeds,
        "--video-pruning-rate (two ways to prune at once)": multimodal.video_pruning_rate,
        "cudagraph_mm_encoder": getattr(compilation, "cudagraph_mm_encoder", False),
        "compile_mm_encoder": getattr(compilation, "compile_mm_encoder", False),
        "--enable-tower-connector-lora": getattr(lora, "enable_tower_connector_lora", False),
        "--ec-transfer-config": getattr(vllm_config, "ec_transfer_config", None),
        "speculative decoding and original positions (search with packed ones)": (
            vllm_config.speculative_config is not None and config.positions == "original"
        ),
    }
    for setting, given in refused.items():
        if given:
            raise UnsupportedModelError(
                f"a pruned model cannot be served with {setting}; leave it out, or start without "
                f"{ENVIRONMENT}"
            )
    hf_config = vllm_config.model_config.hf_config
    check_packing(config.model.model_type, hf_config)
    check_fits(family_like(hf_config), config, strict=False)


def check_packing(model_type: str, hf_config: Any) -> None:
    """Raise where vLLM gives a picture another number of tokens than the model was made for.

    Raises:
        UnsupportedModelError: A LLaVA-OneVision of another limit than its usual one.
    """
    limit = getattr(hf_config, "vision_aspect_ratio", COUNTED_BY)
    if model_type == "llava_onevision" and limit != COUNTED_BY:
        raise UnsupportedModelError(
            f"vision_aspect_ratio is {limit}, and vLLM counts the image tokens of llava_onevision "
            f"by {COUNTED_BY}; run the model in transformers"
        )


def mend_cpu_runner() -> None:
    """Make vLLM's runner for CPUs ask the model for positions, as the one for GPUs does.

    ``CPUModelRunner.load_model`` (0.32, 0.33) replaces the other's and forgets the line that sets
    ``is_multimodal_pruning_enabled``.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load_model = CPUModelRunner.load_model
    if hasattr(load_model, "_prunetune"):
        return

    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        multimodal = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = (
            supports_multimodal_pruning(self.get_model())
            and multimodal is not None
            and multimodal.is_multimodal_pruning_enabled()
        )

    load._prunetune = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load
