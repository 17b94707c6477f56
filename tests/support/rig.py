"""Writer, upkeep, queries and totals on one store, checked against the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from clickhouse.connection import Connection
from clickhouse.fleet import Fleet
from clickhouse.rollups import OPEN_MARKS
from clickhouse.store import Store
from clickhouse.tenant import TenantId
from clickhouse.totals import Totals
from tests.support.oracle import Oracle

NOW = datetime(2026, 11, 23, 9, 15, tzinfo=UTC)


class Rig(Store):
    """The store as a process has it, without its thread: `upkeep.settle()` does the work."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = NOW.timestamp) -> None:
        self.registry = CollectorRegistry()
        super().__init__(connection, self.registry, clock=clock)
        self.asked = self.queries()
        self.read = Totals(connection, clock=clock)  # without the file beside: tests share their stores

    def agree(self, oracle: Oracle, now: datetime = NOW, days: Sequence[int] = (90,)) -> None:
        """All three answers of every tenant, and of one that does not exist, equal the naive count."""
        today = now.date()
        for tenant in (*oracle.tenants(), "nobody"):
            name = TenantId(tenant)
            for span in days:
                assert self.asked.trend(name, today, span) == oracle.trend(tenant, today, span)
                assert self.asked.activity(name, today, span) == oracle.activity(tenant, today, span)
            assert self.asked.agents(name, today) == oracle.agents(tenant, today)

    def open_marks(self) -> int:
        """How many marks of all processes are open."""
        return int(self.connection.rows(f"SELECT count() FROM ({OPEN_MARKS})")[0][0])

    def shown(self) -> Fleet:
        """What the exporter would show now: read, and recorded before it is shown."""
        fleet = self.read.read()
        self.read.record(fleet, newly_published=fleet.tenant_id)
        return fleet

    def value(self, metric: str) -> float:
        """The value of one of the store's own metrics."""
        found = self.registry.get_sample_value(metric)
        assert found is not None, metric
        return found
