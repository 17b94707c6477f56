"""The store, put together once a process: for the service, the commands, tests and benches alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Self

from prometheus_client import CollectorRegistry

from clickhouse import schema, topology
from clickhouse.connection import Connection
from clickhouse.counters_file import CountersFile
from clickhouse.daily import DailyRound
from clickhouse.marks import Segments
from clickhouse.metrics import StoreMetrics
from clickhouse.queries import Queries
from clickhouse.removal import Removal
from clickhouse.rollups import Rollups
from clickhouse.totals import Totals
from clickhouse.upkeep import Upkeep
from clickhouse.writer import Writer

logger = logging.getLogger(__name__)


class Store:
    """Everything that lives once in a process, whatever faces it has. `clock` gives Unix seconds."""

    def __init__(
        self,
        connection: Connection,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.connection = connection
        self.segments = Segments()
        self.metrics = StoreMetrics(registry, self.segments.dirty_slots)
        self.writer = Writer(connection, self.segments, clock=clock)
        self.upkeep = Upkeep(connection, self.segments, Rollups(connection), self.metrics, clock=clock)
        self.removal = Removal(connection, self.writer, self.upkeep, clock=clock)

    @classmethod
    def open(cls, dsn: str, cluster: str | None, registry: CollectorRegistry, *, create: bool = True) -> Self:
        """Opens the store. The embedded one is made and migrated if `create`; a server must have its schema.

        Raises StoreError.
        """
        create = create and dsn.startswith("chdb:")
        connection = Connection(dsn, cluster=cluster, create=create)
        topology.inspect(connection)
        if create:
            applied = schema.migrate(connection)
            if applied:
                logger.info("schema of %s brought to %s", connection.address, applied[-1])
        else:
            schema.check(connection)
        connection.hold()
        return cls(connection, registry)

    def queries(self, seconds: float = 30.0) -> Queries:
        """The tenant's questions; the engine ends a statement after `seconds`."""
        return Queries(self.connection, self.segments, seconds)

    def totals(self) -> Totals:
        """All tenants' figures, remembered beside an embedded store too. Raises StoreSetupError if that cannot be."""
        path = self.connection.counters_file
        return Totals(self.connection, clock=self._clock, counters_file=CountersFile(path) if path else None)

    def daily(self, retention_days: int | None) -> DailyRound:
        """What is done every night; `retention_days` None keeps all."""
        return DailyRound(
            self.connection,
            self.upkeep,
            self.removal,
            self.metrics,
            retention_days=retention_days,
            clock=self._clock,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def check(self) -> None:
        """Raises StoreError unless the store answers, has this program's schema and its rollups keep up."""
        self.upkeep.check()
        schema.check(self.connection)
