"""The keeper: the store and what writes to it, put together once a process."""

from __future__ import annotations

import logging
from typing import Final

from prometheus_client import CollectorRegistry

from clickhouse import schema
from clickhouse.epoch import Epochs
from clickhouse.metrics import StoreMetrics
from clickhouse.removal import Removal
from clickhouse.rollups import Rollups
from clickhouse.store import Store
from clickhouse.upkeep import Upkeep
from clickhouse.writer import Writer

logger = logging.getLogger(__name__)

# Clocks of processes that share a server may be this far apart without a rollup going stale.
SERVER_CLOCK_SKEW_SECONDS: Final = 2.0


class Keeper:
    """Everything that lives once in a process, whatever faces it has."""

    def __init__(self, dsn: str, cluster: str | None, registry: CollectorRegistry, *, create: bool = True) -> None:
        """Opens the store. The embedded one is made and migrated if `create`; a server must have its schema.

        Raises StoreError.
        """
        create = create and dsn.startswith("chdb:")
        self.store = Store(dsn, cluster=cluster, create=create)
        if create:
            applied = schema.migrate(self.store)
            if applied:
                logger.info("schema of %s brought to %s", self.store.address, applied[-1])
        else:
            schema.check(self.store)
        self.store.hold()
        epochs = Epochs()
        self.metrics = StoreMetrics(registry, epochs.dirty_slots)
        self.writer = Writer(self.store, epochs)
        rollups = Rollups(self.store, skew_seconds=0.0 if self.store.embedded else SERVER_CLOCK_SKEW_SECONDS)
        self.upkeep = Upkeep(self.store, epochs, rollups, self.metrics)
        self.removal = Removal(self.store, self.writer, self.upkeep)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def check(self) -> None:
        """Raises StoreError unless the store answers, has this program's schema and its rollups keep up."""
        self.upkeep.check()
        schema.check(self.store)
