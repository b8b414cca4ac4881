"""What ``GET /metrics`` tells, in Prometheus' text format."""

from typing import Any

from prunetune.deploy.front.turns import Turn, Turns

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server; they begin at zero with it.

    Args:
        turns: The queue before the model.
    """

    def __init__(self, turns: Turns) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        kept: dict[str, Any] = {"namespace": "prunetune", "registry": self._registry}
        self._requests = Counter(
            "requests", "Requests that were answered.", ["path", "status"], **kept
        )
        self._cancelled = Counter("cancelled", "Requests whose client left.", **kept)
        self._tokens = Counter(
            "tokens",
            "Tokens: of prompts as sent, of pictures before and after pruning, generated.",
            ["kind"],
            **kept,
        )
        self._seconds = Histogram(
            "request_seconds", "From a whole body to the answer's end.", buckets=_SECONDS, **kept
        )
        self._queued = Histogram(
            "queue_seconds", "Waiting for the model.", buckets=_SECONDS, **kept
        )
        self._model = Histogram(
            "model_seconds", "Of the model for one request.", buckets=_SECONDS, **kept
        )
        for kind in ("prompt", "visual", "visual_kept", "generated"):
            self._tokens.labels(kind)
        Gauge("waiting", "Requests that wait for the model.", **kept).set_function(
            lambda: turns.waits
        )
        Gauge("running", "Requests that the model answers: 0 or 1.", **kept).set_function(
            lambda: int(turns.current is not None)
        )

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(path, str(status)).inc()

    def left(self) -> None:
        """Count a client that did not wait for its answer."""
        self._cancelled.inc()

    def took(self, seconds: float) -> None:
        """Count the time of a request, from its body to the end of its answer."""
        self._seconds.observe(seconds)

    def had(self, turn: Turn, waited: float, seconds: float, visual: tuple[int, int]) -> None:
        """Count a turn with the model.

        Args:
            turn: It.
            waited: Seconds before it.
            seconds: Of it.
            visual: Visual tokens before the first stage, and after the last one.
        """
        self._queued.observe(waited)
        self._model.observe(seconds)
        counts = {"prompt": turn.prompt, "generated": turn.steps}
        counts |= {"visual": visual[0], "visual_kept": visual[1]}
        for kind, count in counts.items():
            self._tokens.labels(kind).inc(count)

    def text(self) -> tuple[bytes, str]:
        """Return the page and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
