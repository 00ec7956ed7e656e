"""What the server counts, in Prometheus form: requests, batches, waiting, versions. Nothing is sent anywhere.

Knows names of figures. Does not know requests or models.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TYPE = CONTENT_TYPE_LATEST


class Measured:
    """Figures of one server, in a registry of their own. `queued`: how many inputs wait now."""

    def __init__(self, queued: Callable[[], int]) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "perdure_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "perdure_request_seconds", "From a request to its answer", ["path"], buckets=SECONDS, registry=registry
        )
        self.inputs = Counter("perdure_inputs", "Inputs answered, by version", ["version"], registry=registry)
        self.refused = Counter("perdure_inputs_refused", "Inputs that could not be read", registry=registry)
        self.batches = Histogram(
            "perdure_batch_inputs", "Inputs a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.busy = Histogram(
            "perdure_batch_seconds", "Decoding and answering of a batch", buckets=SECONDS, registry=registry
        )
        Gauge("perdure_queue_inputs", "Inputs that wait", registry=registry).set_function(queued)
        self.shadow = Counter(
            "perdure_shadow_inputs", "Inputs asked of another version too", ["version", "answer"], registry=registry
        )
        self.version = Gauge("perdure_version", "The version that answers", registry=registry)
        self.changes = Counter("perdure_version_changes", "Changes of the version that answers", registry=registry)

    def batch(self, count: int, seconds: float) -> None:
        self.batches.observe(count)
        self.busy.observe(seconds)

    def request(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def beside(self, version: int, answer: str, count: int = 1) -> None:
        """What a version that is asked beside said: ``same``, ``other``, ``error``, or ``skipped`` for want of time."""
        self.shadow.labels(str(version), answer).inc(count)

    def answers(self, version: int) -> None:
        """Another version answers from now on."""
        self.version.set(version)
        self.changes.inc()

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)
