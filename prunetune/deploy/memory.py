"""Memory: what a model will need, what there is, and the peak of what was taken."""

import re
from pathlib import Path
from typing import Any

from prunetune.errors import ConfigError

MIB, GIB = 1 << 20, 1 << 30
_SCRATCH = 512 << 20  # the scorers' 256 MiB, and what kernels and allocators round up to

_SPARE = 256 << 20


def needed(
    config: Any,
    parameters: int,
    *,
    size: int,
    batch: int,
    tokens: int,
    eager: bool = False,
    patches: int = 0,
    views: int = 1,
) -> tuple[int, int, int]:
    """Return the bytes an unpruned run needs at its peak: weights, KV cache, activations.

    Args:
        config: The model's transformers config.
        parameters: Their number.
        size: Bytes of a number.
        batch: Prompts.
        tokens: Of one prompt, with those generated.
        eager: Whether attention weights are materialised.
        patches: That the vision tower sees of all prompts.
        views: Parts of a picture, over all prompts, that these are of.
    """
    from prunetune.families.base_configs import field_of

    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(field_of(text, "head_dim") or text.hidden_size // heads)
    keys = int(field_of(text, "num_key_value_heads") or heads) * width
    rows = batch * tokens
    cache = rows * int(text.num_hidden_layers) * 2 * keys * size
    # A layer holds its input, normed input, queries, keys, values and output, then the MLP's three;
    # norms compute in 32 bits. A mask has a number for every pair of tokens.
    wide = int(text.hidden_size)
    work = rows * ((8 * wide + 3 * int(text.intermediate_size)) * size + 2 * wide * 4)
    work += batch * tokens * tokens * size
    if eager:
        work += 2 * batch * heads * tokens * tokens * max(size, 4)
    tower = _tower(config.vision_config, size, patches, views, eager) if patches else 0
    # The tower has ended, but for its features, before the language model begins.
    features = 2 * patches * wide * size
    return parameters * size, cache, max(work, tower) + features + _SCRATCH


def _tower(vision: Any, size: int, patches: int, views: int, eager: bool) -> int:
    """Return the bytes of a vision tower's activations, pictures included."""
    wide = int(vision.hidden_size)
    # CLIP's and Qwen-VL's names.
    depth = int(getattr(vision, "num_hidden_layers", getattr(vision, "depth", 0)))
    heads = int(getattr(vision, "num_attention_heads", getattr(vision, "num_heads", 1)))
    pixels = 3 * int(vision.patch_size) ** 2
    # LLaVA's towers keep the states of every layer.
    held = (depth + 1 + 8) * wide + 3 * int(vision.intermediate_size) + pixels
    found = patches * (held * size + 2 * wide * 4 + pixels * 4)
    if eager:
        found += 2 * heads * patches * -(-patches // max(1, views)) * max(size, 4)
    return found


def available(device: Any) -> int | None:
    """Return the free bytes of a device; None where that cannot be told."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        text = Path("/proc/meminfo").read_text()
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:  # not Linux
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    free = [int(found[1]) * 1024] if found else []
    return min([*free, *_group_rooms(groups)], default=None)


def _group_rooms(groups: str, root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what is free under each limit that a control group, or one above it, has.

    Args:
        groups: ``/proc/self/cgroup``.
        root: Where they are.
    """
    rooms = []
    for line in groups.splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "memory":
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not kinds:
            base, names = root, ("memory.max", "memory.current")
        else:
            continue
        place = base / path.strip("/")
        # In a container the path may be the host's, of which only the root is seen.
        for folder in dict.fromkeys((place, *place.parents, base)):
            if folder == base or base in folder.parents:
                rooms += _room(folder, *names)
    return rooms


def _room(folder: Path, limit: str, used: str) -> list[int]:
    try:
        most, taken = (int((folder / name).read_text()) for name in (limit, used))
        stat = (folder / "memory.stat").read_text()
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return []
    # Files that were read count as taken, and go when room is needed.
    files = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
    return [most - taken + (int(files[1]) if files else 0)]


def check_fits(what: str, parts: tuple[int, int, int], free: int | None, device: Any) -> None:
    """Raise unless ``parts`` (see ``needed``) fit into ``free`` bytes.

    Raises:
        ConfigError: One line with what is needed, what is free and what to do.
    """
    total = sum(parts)
    # Others on the machine, and what allocators do not give back.
    if free is None or total + _SPARE <= free:
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
