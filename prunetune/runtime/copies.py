"""Copies of a model that a config is applied to: clean, for hooks would act for the first model."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

_STATE = "__getstate__"
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_MISSING = object()


class Before:
    """A model's modules before something was put on them, so that a copy of any can leave it out.

    ``copy``, ``pickle`` and ``torch.save`` ask a module for its state: while ``watch`` is in force
    a changed module gives the one that it had before, with all that others changed meanwhile.

    Args:
        model: With all its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = [(module, dict(module.__dict__)) for module in model.modules()]

    def watch(self, hooks: Iterable[Any], base: nn.Module) -> Callable[[], None]:
        """Make copies leave out what was put on since.

        Args:
            hooks: Handles of the hooks that were.
            base: The module whose copy is told of once.

        Returns:
            What ends it.
        """
        numbers = {hook.id for hook in hooks}
        changed: list[nn.Module] = []
        told: list[nn.Module] = []

        def tell() -> None:
            if not told:
                told.append(base)
                logger.warning(
                    "the copy of a model with a pruning config applied prunes nothing: apply the "
                    "config to the copy"
                )

        for module, before in self._before:
            now = module.__dict__
            given = {k: v for k, v in now.items() if before.get(k, _MISSING) is not v}
            hooked = any(numbers & now.get(name, {}).keys() for name in _HOOKS)
            if given or hooked:
                earlier = {k: before.get(k, _MISSING) for k in given}
                say = tell if module is base else None
                now[_STATE] = _state(module, given, earlier, numbers, say)
                changed.append(module)
        self._before.clear()

        def end() -> None:
            for module in changed:
                module.__dict__.pop(_STATE, None)
            changed.clear()

        return end


def _state(
    module: nn.Module,
    given: Mapping[str, Any],
    earlier: Mapping[str, Any],
    numbers: set[int],
    say: Callable[[], None] | None,
) -> Callable[[], dict[str, Any]]:
    """Return a module's ``__getstate__``: without what it was given and hooks of these numbers."""

    def state() -> dict[str, Any]:
        if say is not None:
            say()
        # Of the class: it may have one of its own.
        kind: Any = type(module)
        found: dict[str, Any] = dict(kind.__getstate__(module))
        found.pop(_STATE, None)
        for name, value in given.items():
            # Somebody may have put another one there meanwhile.
            if found.get(name, _MISSING) is value:
                found[name] = earlier[name]
        for name in _HOOKS:
            if numbers & found.get(name, {}).keys():
                kept = [(k, v) for k, v in found[name].items() if k not in numbers]
                found[name] = type(found[name])(kept)
        return {name: value for name, value in found.items() if value is not _MISSING}

    return state
