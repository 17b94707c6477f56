"""The store: the store and what writes to it, put together once a process."""

from __future__ import annotations

import logging
from typing import Final

from prometheus_client import CollectorRegistry

from clickhouse import schema
from clickhouse.connection import Connection
from clickhouse.marks import Segments
from clickhouse.metrics import StoreMetrics
from clickhouse.removal import Removal
from clickhouse.rollups import Rollups
from clickhouse.upkeep import Upkeep
from clickhouse.writer import Writer

logger = logging.getLogger(__name__)

# Clocks of processes that share a server may be this far apart without a rollup going stale.
SERVER_CLOCK_SKEW_SECONDS: Final = 2.0


class Store:
    """Everything that lives once in a process, whatever faces it has."""

    def __init__(self, dsn: str, cluster: str | None, registry: CollectorRegistry, *, create: bool = True) -> None:
        """Opens the store. The embedded one is made and migrated if `create`; a server must have its schema.

        Raises StoreError.
        """
        create = create and dsn.startswith("chdb:")
        self.connection = Connection(dsn, cluster=cluster, create=create)
        if create:
            applied = schema.migrate(self.connection)
            if applied:
                logger.info("schema of %s brought to %s", self.connection.address, applied[-1])
        else:
            schema.check(self.connection)
        self.connection.hold()
        segments = Segments()
        self.metrics = StoreMetrics(registry, segments.dirty_slots)
        self.writer = Writer(self.connection, segments)
        rollups = Rollups(self.connection, skew_seconds=0.0 if self.connection.embedded else SERVER_CLOCK_SKEW_SECONDS)
        self.upkeep = Upkeep(self.connection, segments, rollups, self.metrics)
        self.removal = Removal(self.connection, self.writer, self.upkeep)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def check(self) -> None:
        """Raises StoreError unless the store answers, has this program's schema and its rollups keep up."""
        self.upkeep.check()
        schema.check(self.connection)
