"""What a release of transformers has to keep while a config is applied, and whether it does."""

from typing import Any

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModelError
from prunetune.release import cache_of, keyed_layers, unsupported
from prunetune.runtime.layers.cache import CacheState, physical_length


def check_cache(seen: Any, past: int, given: Any, output: Any) -> None:
    """Raise unless a forward's layers were seen growing the cache that it leaves.

    Args:
        seen: The cache that the first layer with a hook was given, or None.
        past: Tokens of the sequence before the forward.
        given: The cache that the base model was given, or None.
        output: What it returned.

    Raises:
        UnsupportedModelError: A cache grew behind the hooks' back.
    """
    for cache in (given, cache_of(output)):
        if cache is None or cache is seen:
            continue
        if int(cache.get_seq_length()) > past or seen is not None:
            raise unsupported("its decoder layers were not seen to get the cache that they fill")


def check_lengths(cache: Any, promised: list[int]) -> None:
    """Raise unless each layer of ``cache`` holds exactly the promised number of tokens.

    Those that carry a state hold none.

    Raises:
        UnsupportedModelError: A layer holds another number.
    """
    keyed = set(keyed_layers(cache))
    for layer, want in enumerate(promised):
        if layer not in keyed and layer < len(cache.layers):
            continue
        if (found := physical_length(cache, layer)) != want:
            raise unsupported(f"layer {layer} cached {found} tokens where the config leaves {want}")


def check_left(alive: Tensor, layer: int) -> None:
    """Raise if a stage leaves a row of a batch nothing at all: a prompt without text, at an exit.

    Args:
        alive: ``[B, S]`` bool, what is left.
        layer: Of the stage.
    """
    if not bool(alive.any(1).all()):
        raise UnsupportedModelError(
            f"the exit at layer {layer} drops all image tokens, and a prompt is nothing but "
            "images; pass text with them, or use a config without a retention of 0"
        )


def last_position(positions: Tensor | None, valid: Tensor) -> Tensor | int | None:
    """Return the position of each row's last token, ``[B]``; an int where it is the same in all.

    Args:
        positions: ``[B or 1, S]`` int64, or several rows of them (M-RoPE), ``[rows, B, S]``.
        valid: ``[B, S]`` bool.

    Returns:
        None where it is not known: rows that end in padding, models that number by themselves.
    """
    if positions is None or not bool(valid[:, -1].all()):
        return None
    # A last token of an image stands in several places at once; text goes on behind all of them.
    last = positions[..., -1] if positions.dim() == 2 else positions[..., -1].amax(0)
    first = int(last[0])
    return first if bool((last == first).all()) else last.clone()


def check_position(
    state: CacheState,
    past: int,
    positions: Tensor | None,
    batch: int,
    *,
    chosen: bool,
    dropped: int,
) -> Tensor | None:
    """Compare a decoding step's position with the one that follows the sequence.

    Args:
        state: Of the cache.
        past: Tokens of the sequence before the step.
        positions: Of the step, ``[B or 1, 1]`` or ``[rows, B, 1]`` int64; None: unknown.
        batch: Rows of the step.
        chosen: Whether the model was given the positions. Its caller may number as it likes (a
            tree of candidates); only positions that count what is cached are wrong then.
        dropped: Tokens that layer 0 of the cache lacks.

    Returns:
        0-dim bool, True where it is wrong; None: there is nothing to compare.
    """
    if positions is None or torch.compiler.is_compiling():
        return None
    expected = state.next_position(past, batch)
    if expected is None:
        return None
    at = positions[..., -1]
    if isinstance(expected, Tensor):
        expected = expected.to(at.device)
    if not chosen:
        return (at != expected).any()
    return (at == expected - dropped).any() if dropped else None


class Suspicion:
    """Wrong positions, found without waiting for the device: of one thread's last step."""

    def __init__(self) -> None:
        self._flag: Tensor | None = None
        self._ready: Any = None

    def note(self, wrong: Tensor) -> None:
        """Remember a step's 0-dim bool, and raise if it is on the CPU and True."""
        if wrong.device.type == "cuda":
            self._flag = torch.zeros((), dtype=torch.bool, device="cpu", pin_memory=True)
            self._flag.copy_(wrong, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record(torch.cuda.current_stream(wrong.device))
            return
        self._flag, self._ready = wrong, None
        self.settle()

    def settle(self, *, wait: bool = False) -> None:
        """Raise if the last step is known to have been wrong.

        Args:
            wait: For the device, where it is not known yet.

        Raises:
            UnsupportedModelError: It was.
        """
        if self._flag is None or (self._ready is not None and not wait and not self._ready.query()):
            return
        if self._ready is not None:
            self._ready.synchronize()
        wrong, self._flag, self._ready = bool(self._flag), None, None
        if wrong:
            raise unsupported(
                "a decoding step stands at the position of what is cached, not behind the whole "
                "sequence, dropped tokens included"
            )
