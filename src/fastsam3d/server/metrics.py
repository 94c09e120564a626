"""What an operator watches, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from fastsam3d.server.host import ModelHost
    from fastsam3d.server.leases import LeaseTable
    from fastsam3d.server.queue import EngineQueue

_SECONDS: Final = (
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32,
)  # fmt: skip


class Metrics:
    """Counters of one server; each has its own registry, so that several may live in one process.

    Attributes:
        encode: Seconds spent on encoding, of the answers that encoded anything.
        click: Seconds of the rest of an answer.
        overhead: Seconds from a request's arrival to its answer, less both, when it did not wait.
        waited: Seconds that jobs waited for the engine.
        refusals: Requests that were answered with an error, by code.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=_SECONDS, registry=self.registry)

        self.encode = seconds("fastsam3d_encode_seconds", "Encoding of an answer.")
        self.click = seconds("fastsam3d_click_seconds", "Answering without encoding.")
        self.overhead = seconds("fastsam3d_overhead_seconds", "The server's own part of an answer.")
        self.waited = seconds("fastsam3d_wait_seconds", "Waiting for the engine.")
        self.refusals = Counter(
            "fastsam3d_refusals", "Error replies.", ["code"], registry=self.registry
        )

    def watch(self, leases: LeaseTable, queue: EngineQueue, host: ModelHost) -> None:
        """Report the number of sessions, the length of the queue and the engine's restarts."""
        sessions = Gauge("fastsam3d_sessions", "Sessions in use.", registry=self.registry)
        sessions.set_function(lambda: len(leases))
        limit = Gauge("fastsam3d_sessions_limit", "Sessions at most.", registry=self.registry)
        limit.set(leases.max_sessions)
        waiting = Gauge("fastsam3d_queue_length", "Jobs that wait.", registry=self.registry)
        waiting.set_function(lambda: len(queue))
        restarts = Gauge(
            "fastsam3d_engine_restarts", "Engine processes replaced.", registry=self.registry
        )
        restarts.set_function(lambda: host.restarts)

    def to_text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
