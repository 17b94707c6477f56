"""The exporter's own metrics, and how they are rendered."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from exporter.families import FAMILIES
from exporter.negotiation import Format
from exporter.watch_lines import WATCH_FAMILIES


class ExporterMetrics:
    """The exporter's metrics on `registry`. Make one for each registry; a second one raises ValueError."""

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(f"agentidp_analytics_{name}", documentation, registry=registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"agentidp_analytics_{name}", documentation, labels, registry=registry)

        self.up = gauge("up", "Whether the last refresh from the store worked (1) or not (0).")
        self.snapshot_age = gauge(
            "snapshot_age_seconds",
            "How long ago the tenant series shown were read from the store; since the start if they never were.",
        )
        self.refresh_duration = gauge("refresh_duration_seconds", "How long the last refresh took, failed or not.")
        self.refreshes = counter("refreshes_total", "Refreshes from the store, failed ones included.")
        self.refresh_failures = counter("refresh_failures_total", "Refreshes from the store that failed.")
        self.tenants = gauge("tenants", "Tenants in the store.")
        self.dropped_tenants = gauge(
            "dropped_tenants", "Tenants beyond the limit, without series of their own, summed as tenant_id _other."
        )
        self.zero_held_tenants = gauge(
            "zero_held_tenants", "Tenants whose counters are held at 0 until scrapes have seen them there."
        )
        self.scrapes = counter("scrapes_total", "Scrapes answered, by exposition format.", "format")
        self.scrapes_refused = counter("scrapes_refused_total", "Requests refused, by reason.", "reason")
        for format_ in Format:
            self.scrapes.labels(format_.name.lower())
        for reason in ("credentials", "busy"):
            self.scrapes_refused.labels(reason)
        Info("agentidp_analytics_build", "The running version.", registry=registry).info({"version": version})


def render_registry(registry: CollectorRegistry, format_: Format) -> bytes:
    """All metrics of `registry` in `format_`, without `_created` series; in OpenMetrics they end with `# EOF`.

    `_created` would add a series to every counter and histogram, and nothing here reads it. All names are ASCII;
    saying that UTF-8 is allowed only spares the escaping of each name, half the time this takes.
    """
    collector = _WithoutCreated(registry)
    if format_ is Format.OPENMETRICS:
        body: bytes = openmetrics.generate_latest(collector, escaping=openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return body
    return exposition.generate_latest(collector, escaping=openmetrics.ALLOWUTF8)


def require_no_tenant_family(registry: CollectorRegistry) -> None:
    """Raises ValueError if `registry` has a family that the tenant series bring too: scrapes would be rejected."""
    taken = {family.name for family in (*FAMILIES, *WATCH_FAMILIES)} & {metric.name for metric in registry.collect()}
    if taken:
        raise ValueError(f"the registry may not have metrics of the tenant families: {', '.join(sorted(taken))}")


class _WithoutCreated:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            created = f"{metric.name}_created"
            shown = copy(metric)  # a collector may hand out the same object to every scrape
            shown.samples = [sample for sample in metric.samples if sample.name != created]
            yield shown
