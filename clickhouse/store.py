"""The store, put together once a process: for the service, the commands, tests and benches alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Self

from prometheus_client import CollectorRegistry

from clickhouse import schema
from clickhouse.agent_detail import AgentDetails
from clickhouse.alerts import Alerts
from clickhouse.audit import Report, verify
from clickhouse.budget import Budget
from clickhouse.connection import Connection
from clickhouse.counters_file import CountersFile
from clickhouse.daily import DailyRound
from clickhouse.detection.detector import Detector
from clickhouse.export import export
from clickhouse.marks import Segments
from clickhouse.metrics import StoreMetrics
from clickhouse.queries import Queries
from clickhouse.removal import Removal
from clickhouse.rollups import Rollups
from clickhouse.size import Size, measure
from clickhouse.totals import Totals
from clickhouse.upkeep import Upkeep
from clickhouse.writer import Writer


class Store:
    """Everything that lives once in a process, whatever faces it has. `clock` gives Unix seconds."""

    def __init__(
        self,
        connection: Connection,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
        metrics: StoreMetrics | None = None,
    ) -> None:
        """`metrics`: those of a store that this one is a shard of."""
        self._clock = clock
        self.connection = connection
        self.segments = Segments()
        self.metrics = metrics or StoreMetrics(registry, self.segments.dirty_slots)
        self.writer = Writer(connection, self.segments, clock=clock)
        self.upkeep = Upkeep(connection, self.segments, Rollups(connection), self.metrics, clock=clock)
        self._detecting = threading.Lock()
        self.removal = Removal(connection, self.writer, self.upkeep, clock=clock, detecting=self._detecting)

    def queries(self, seconds: float = 30.0) -> Queries:
        """The tenant's questions; the engine ends a statement after `seconds`."""
        return Queries(self.connection, self.segments, seconds)

    def totals(self) -> Totals:
        """All tenants' figures, remembered beside an embedded store too. Raises StoreSetupError if that cannot be."""
        path = self.connection.counters_file
        return Totals(self.connection, clock=self._clock, counters_file=CountersFile(path) if path else None)

    def alerts(self, seconds: float = 30.0) -> Alerts:
        """What the detector has found; the engine ends a statement after `seconds`."""
        return Alerts(self.connection, seconds)

    def agent_details(self, seconds: float = 30.0) -> AgentDetails:
        """One agent, closely; the engine ends a statement after `seconds`."""
        return AgentDetails(self.connection, seconds)

    def detector(self, budgets: Callable[[], Sequence[Budget]] = lambda: ()) -> Detector:
        """The detector; one thread of a process may use it. `budgets` is asked at each round."""
        return Detector(self.connection, clock=self._clock, budgets=budgets, working=self._detecting)

    def daily(self, retention_days: int | None) -> DailyRound:
        """What is done every night; `retention_days` None keeps all."""
        return DailyRound(self, retention_days=retention_days, clock=self._clock)

    def size(self) -> Size:
        """What it takes on disk and what is left. Raises StoreError."""
        return measure(self.connection)

    def verify(
        self,
        since: date | None = None,
        until: date | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Report:
        """Raw events against rollups; see `clickhouse.audit.verify`."""
        return verify(self.connection, since, until, progress)

    def export(self) -> Iterator[bytes]:
        """Every event, as NDJSON; see `clickhouse.export.export`."""
        return export(self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def check(self) -> None:
        """Raises StoreError unless the store answers, has this program's schema and its rollups keep up."""
        self.upkeep.check()
        schema.check(self.connection)
