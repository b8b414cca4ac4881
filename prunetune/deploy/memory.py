"""Memory: what a model will need, what there is, and the peak of what was taken."""

import re
from pathlib import Path
from typing import Any

from prunetune.errors import ConfigError

MIB, GIB = 1 << 20, 1 << 30
_SCRATCH = 512 << 20  # the scorers' 256 MiB, and what kernels and allocators round up to


def needed(
    config: Any, parameters: int, *, size: int, batch: int, tokens: int, eager: bool = False
) -> tuple[int, int, int]:
    """Return the bytes an unpruned run needs: weights, KV cache, activations.

    Args:
        config: The model's transformers config.
        parameters: Their number.
        size: Bytes of a number.
        batch: Prompts.
        tokens: Of one prompt, with those generated.
        eager: Whether attention weights are materialised.
    """
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    keys = int(getattr(text, "num_key_value_heads", None) or heads) * width
    rows = batch * tokens
    cache = rows * int(text.num_hidden_layers) * 2 * keys * size
    # A layer holds its input, normed input, queries, keys, values and output, then the MLP's three.
    work = rows * (8 * int(text.hidden_size) + 3 * int(text.intermediate_size)) * size
    if eager:
        work += 2 * batch * heads * tokens * tokens * max(size, 4)
    return parameters * size, cache, work + _SCRATCH


def available(device: Any) -> int | None:
    """Return the free bytes of a device; None where that cannot be told."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:  # not Linux
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    free = [int(found[1]) * 1024] if found else []
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free.append(limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or no limit ("max")
        pass
    return min(free, default=None)


def check_fits(what: str, parts: tuple[int, int, int], free: int | None, device: Any) -> None:
    """Raise unless ``parts`` (see ``needed``) fit into ``free`` bytes.

    Raises:
        ConfigError: One line with what is needed, what is free and what to do.
    """
    total = sum(parts)
    if free is None or total <= free:
        return
    weights, cache, work = (part / GIB for part in parts)
    raise ConfigError(
        f"{what} needs about {total / GIB:.1f} GiB on {device} (weights {weights:.1f}, KV cache "
        f"{cache:.1f}, activations {work:.1f}), {free / GIB:.1f} GiB are free; lower "
        "--batch-size, use --dtype bfloat16 or --shape mid, or a device with more memory"
    )


class Peak:
    """Peak memory while something runs.

    CUDA: what torch allocated, on all devices, weights included. CPU: the largest resident set of
    the whole process, Python and libraries included, where Linux lets it be reset.
    """

    def __init__(self, device: Any) -> None:
        self._cuda = device.type == "cuda"

    def reset(self) -> None:
        """Start anew."""
        if self._cuda:
            import torch

            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._can_reset = True
        except OSError:
            self._can_reset = False

    def read(self) -> int | None:
        """Return the bytes of the peak since ``reset``; None where they cannot be told."""
        if self._cuda:
            import torch

            return sum(
                int(torch.cuda.max_memory_allocated(index))
                for index in range(torch.cuda.device_count())
            )
        if not self._can_reset:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return int(found[1]) * 1024 if found else None
