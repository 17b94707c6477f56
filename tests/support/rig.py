"""Writer, upkeep, queries and totals on one store, checked against the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from clickhouse.connection import Connection
from clickhouse.fleet import Fleet
from clickhouse.marks import Segments
from clickhouse.metrics import StoreMetrics
from clickhouse.queries import Queries
from clickhouse.removal import Removal
from clickhouse.rollups import Rollups
from clickhouse.tenant import TenantId
from clickhouse.totals import Totals
from clickhouse.upkeep import Upkeep
from clickhouse.writer import Writer
from tests.support.oracle import Oracle

NOW = datetime(2026, 11, 23, 9, 15, tzinfo=UTC)


class Rig:
    """The store's parts as `serve` puts them together, without its thread: `upkeep.settle()` does the work."""

    def __init__(
        self, connection: Connection, clock: Callable[[], float] = NOW.timestamp, skew_seconds: float = 0.0
    ) -> None:
        self.connection = connection
        self.segments = Segments()
        self.writer = Writer(connection, self.segments, clock=clock)
        self.registry = CollectorRegistry()
        self.metrics = StoreMetrics(self.registry, self.segments.dirty_slots)
        rollups = Rollups(connection, skew_seconds=skew_seconds)
        self.upkeep = Upkeep(connection, self.segments, rollups, self.metrics, clock=clock)
        self.queries = Queries(connection)
        self.totals = Totals(connection, clock=clock)
        self.removal = Removal(connection, self.writer, self.upkeep)

    def check(self, oracle: Oracle, now: datetime = NOW, days: Sequence[int] = (90,)) -> None:
        """All three answers of every tenant, and of one that does not exist, equal the naive count."""
        today = now.date()
        for tenant in (*oracle.tenants(), "nobody"):
            name = TenantId(tenant)
            for span in days:
                assert self.queries.trend(name, today, span) == oracle.trend(tenant, today, span)
                assert self.queries.activity(name, today, span) == oracle.activity(tenant, today, span)
            assert self.queries.agents(name, today) == oracle.agents(tenant, today)

    def shown(self) -> Fleet:
        """What the exporter would show now: read, and recorded before it is shown."""
        fleet = self.totals.read()
        self.totals.record(fleet, newly_published=fleet.tenant_id)
        return fleet

    def value(self, metric: str) -> float:
        """The value of one of the store's own metrics."""
        found = self.registry.get_sample_value(metric)
        assert found is not None, metric
        return found
