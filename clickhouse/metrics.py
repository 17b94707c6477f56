"""The store's own metrics, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from clickhouse.size import Size

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_EVENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 20_000, 50_000)


class LateGauge(Collector):
    """A gauge without a sample until it is first set: a 0 would be a time in 1970, or a check that passed."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._value: float | None = None
        registry.register(self)

    def set(self, value: float | None) -> None:
        """Shows `value` from now on; None shows nothing."""
        self._value = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The family, with its sample if there is one."""
        yield GaugeMetricFamily(self._name, self._documentation, value=self._value)


class StoreMetrics:
    """Registers on `registry`; `dirty_slots` is asked at each scrape."""

    def __init__(self, registry: CollectorRegistry, dirty_slots: Callable[[], int] = lambda: 0) -> None:
        self.commit_events = Histogram(
            "agentidp_analytics_commit_events",
            "Events in one group commit.",
            buckets=_EVENTS,
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "agentidp_analytics_commit_duration_seconds",
            "Time of one group commit, from the first statement to durable.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.commit_failures = Counter(
            "agentidp_analytics_commit_failures",
            "Group commits that the store did not answer; their senders were told to send again.",
            registry=registry,
        )
        self.recompute_seconds = Histogram(
            "agentidp_analytics_recompute_duration_seconds",
            "Time of one recompute of the rollups.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.recompute_failures = Counter(
            "agentidp_analytics_recompute_failures",
            "Recomputes that the store did not answer; answers stay exact, from raw events.",
            registry=registry,
        )
        self.duplicates_found = Counter(
            "agentidp_analytics_duplicates_found",
            "Events that were sent again and counted once.",
            registry=registry,
        )
        Gauge(
            "agentidp_analytics_dirty_slots",
            "15-minute slots with events that the rollups do not have yet; they are answered from raw events.",
            registry=registry,
        ).set_function(dirty_slots)
        self.detection_last_success = LateGauge(
            "agentidp_analytics_detection_last_success_timestamp_seconds",
            "When the detector last ended a round (Unix time).",
            registry=registry,
        )
        self.detection_seconds = LateGauge(
            "agentidp_analytics_detection_duration_seconds",
            "Time of the detector's last round.",
            registry=registry,
        )
        self.detection_failures = Counter(
            "agentidp_analytics_detection_failures",
            "Rounds of the detector that the store did not answer; alerts stay as they were.",
            registry=registry,
        )
        # From this process alone: what retention writes down says how far it went, and nothing when it found nothing.
        self.retention_last_success = LateGauge(
            "agentidp_analytics_retention_last_success_timestamp_seconds",
            "When this process last ended a retention (Unix time), whether there was something to remove or not.",
            registry=registry,
        )
        self._store_bytes = LateGauge(
            "agentidp_analytics_store_bytes",
            "Bytes of the store's tables on disk, without what other replicas repeat.",
            registry=registry,
        )
        self._store_free_bytes = LateGauge(
            "agentidp_analytics_store_free_bytes",
            "Free bytes of the store's disk; of several, where the fewest are.",
            registry=registry,
        )
        self._store_free_ratio = LateGauge(
            "agentidp_analytics_store_free_ratio",
            "Free share (0 to 1) of the room that the store has, its own bytes and the free ones; of shards the least.",
            registry=registry,
        )
        self._store_parts = LateGauge(
            "agentidp_analytics_store_parts",
            "Parts of the partition that has most.",
            registry=registry,
        )
        self.verify_differences = LateGauge(
            "agentidp_analytics_verify_differences",
            "Tenant-days of the last daily check whose rollups differ from a recount of the raw events.",
            registry=registry,
        )
        self.verify_conflicts = LateGauge(
            "agentidp_analytics_verify_conflicting_ids",
            "Event ids of the last daily check that were sent with two times, agents or outcomes.",
            registry=registry,
        )
        self.verify_last_run = LateGauge(
            "agentidp_analytics_verify_last_run_timestamp_seconds",
            "When the last daily check ended (Unix time).",
            registry=registry,
        )

    def measured(self, size: Size) -> None:
        """Shows how large the store is."""
        self._store_bytes.set(size.bytes)
        self._store_free_bytes.set(size.free_bytes)
        self._store_free_ratio.set(size.free_ratio)
        self._store_parts.set(size.parts)
