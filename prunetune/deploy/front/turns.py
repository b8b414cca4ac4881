"""Whose request the model answers: one at a time, and a bounded number that wait."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from prunetune.deploy.front.replies import Refused


class Turn:
    """One request's time with the model.

    Attributes:
        cancelled: Set from any thread: generation ends at its next step.
        refused: Why the request was not generated, found after it was passed on.
        stops: Texts that end the answer; it ends with the one that did.
        generating: Whether the model has begun.
        prompt: Tokens of the prompt.
        steps: Tokens that were generated.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.refused: Refused | None = None
        self.stops: tuple[str, ...] = ()
        self.generating = False
        self.prompt = self.steps = 0

    def criterion(self, context: int | None, read: Callable[[Any], str]) -> Any:
        """Return what ``generate`` asks after every token whether to stop.

        Stop strings are looked for in the text: transformers' own criterion fails on tokenizers
        whose tokens are words.

        Args:
            context: Most tokens of prompt and answer together; None: no limit.
            read: Returns the text of tokens.
        """
        import torch

        reach = 4 + max(map(len, self.stops), default=0)

        def stop(input_ids: Any, scores: Any, **_: Any) -> Any:
            self.steps += 1
            full = context is not None and self.prompt + self.steps >= context
            done = full or self.cancelled.is_set()
            if self.stops and not done:
                ids = input_ids[:, -min(self.steps, reach) :]
                return torch.tensor([self._stopped(read(row)) for row in ids], device=ids.device)
            return torch.full((input_ids.shape[0],), done, device=input_ids.device)

        return stop

    def _stopped(self, text: str) -> bool:
        return any(stop in text for stop in self.stops)


class Turns:
    """The queue before the model.

    Args:
        waiting: Requests that may wait, beside the one that has its turn.

    Attributes:
        waits: Requests that wait.
        current: The turn that is on.
    """

    def __init__(self, waiting: int) -> None:
        self._most = waiting
        self._lock = asyncio.Lock()
        self.waits = 0
        self.current: Turn | None = None

    def check_room(self) -> None:
        """Refuse a request that would have no place.

        Raises:
            Refused: As many wait as may.
        """
        if self._lock.locked() and self.waits >= self._most:
            raise Refused(429, f"{self.waits} requests wait for the model already; try again later")

    async def begin(self, turn: Turn) -> float:
        """Wait for the turn, and return for how many seconds; ``end`` ends it.

        Raises:
            Refused: As many wait as may.
        """
        self.check_room()
        begun = time.monotonic()
        self.waits += 1
        try:
            await self._lock.acquire()
        finally:
            self.waits -= 1
        self.current = turn
        return time.monotonic() - begun

    def end(self) -> None:
        """Let the next one have its turn."""
        self.current = None
        self._lock.release()
