"""What Prometheus is told of a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


class _Load(Collector):
    """Read when the metrics are, so that they are never old."""

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        self._load = load

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Both gauges."""
        decoding, waiting = self._load()
        yield GaugeMetricFamily("anymal_decoding", "Answers being decoded together", value=decoding)
        yield GaugeMetricFamily("anymal_waiting", "Requests that wait for their place in the batch", value=waiting)


class Metrics:
    """Counters of one application.

    Args:
        load: gives the answers being decoded and the requests that wait.
    """

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Load(load))
        self._requests = Counter("anymal_requests", "Requests by how they ended", ["outcome"], registry=self._registry)
        self._refusals = Counter("anymal_refusals", "Reasons of refusals", ["reason"], registry=self._registry)
        self._tokens = Counter("anymal_tokens", "Tokens read and written", ["kind"], registry=self._registry)
        self._seconds = Histogram("anymal_request_seconds", "Time of a request", buckets=SECONDS, registry=self._registry)
        self._token = Histogram("anymal_first_token_seconds", "Time to the model's first token, before any of it is checked", buckets=SECONDS,
                                registry=self._registry)
        self._first = Histogram("anymal_first_sentence_seconds", "Time to the first checked sentence", buckets=SECONDS, registry=self._registry)

    def answered(self, outcome: str, seconds: float, *, token: float | None, first: float | None, prompt_tokens: int, tokens: int) -> None:
        """Count a request that is over; `token` and `first` are the seconds to the first token and the first released sentence."""
        self._requests.labels(outcome).inc()
        self._seconds.observe(seconds)
        for histogram, value in ((self._token, token), (self._first, first)):
            if value is not None:
                histogram.observe(value)
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("completion").inc(tokens)

    def refused(self, reason: str) -> None:
        """Count a reason."""
        self._refusals.labels(reason).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
