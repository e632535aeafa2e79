"""Figures about the service in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The figures of one service."""

    def __init__(self, jobs: Callable[[], dict[str, int]], listings: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "comgrad_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "comgrad_request_seconds", "Seconds to answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.refused = Counter("comgrad_refused", "Requests refused, by code.", ["code"], registry=self.registry)
        self.received = Counter("comgrad_received_bytes", "Bytes of bodies received.", registry=self.registry)
        self.registry.register(_State(jobs, listings))

    def text(self) -> bytes:
        """All figures."""
        found: bytes = generate_latest(self.registry)
        return found


class _State(Collector):
    """Figures that are counted when they are asked for."""

    def __init__(self, jobs: Callable[[], dict[str, int]], listings: Callable[[], int]) -> None:
        self._jobs = jobs
        self._listings = listings

    def collect(self) -> Iterator[Metric]:
        """Jobs by state, and listings."""
        jobs = GaugeMetricFamily("comgrad_jobs", "Jobs, by state.", labels=["state"])
        for state, count in self._jobs().items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily("comgrad_listings", "Vectors listed.", value=self._listings())

    def describe(self) -> Iterator[Metric]:
        """Nothing is counted to say what there is."""
        yield GaugeMetricFamily("comgrad_jobs", "Jobs, by state.", labels=["state"])
