"""Opening the store that a DSN leads to: an embedded one, a server, or the primaries of a cluster's shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import overload

from prometheus_client import CollectorRegistry

from clickhouse import schema, topology
from clickhouse.cluster import Placement, Shard, ask_once, dsn_at, place, placement_of, require_placement, shards_of
from clickhouse.connection import Connection
from clickhouse.dsn import server_arguments
from clickhouse.errors import StoreSetupError
from clickhouse.failover import Follower, Followers, failover
from clickhouse.metrics import StoreMetrics
from clickhouse.sharded import ShardedStore
from clickhouse.store import Store

logger = logging.getLogger(__name__)


@overload
def open_store(
    dsn: str,
    cluster: None,
    registry: CollectorRegistry,
    *,
    create: bool = True,
    clock: Callable[[], float] = time.time,
) -> Store: ...


@overload
def open_store(
    dsn: str,
    cluster: str | None,
    registry: CollectorRegistry,
    *,
    create: bool = True,
    clock: Callable[[], float] = time.time,
) -> Store | ShardedStore: ...


def open_store(
    dsn: str,
    cluster: str | None,
    registry: CollectorRegistry,
    *,
    create: bool = True,
    clock: Callable[[], float] = time.time,
) -> Store | ShardedStore:
    """Opens the store. The embedded one is made and migrated if `create`; a server must have its schema.

    Raises StoreError.
    """
    if cluster is not None:
        return _open_cluster(dsn, cluster, registry, clock)
    create = create and dsn.startswith("chdb:")
    connection = Connection(dsn, create=create)
    topology.inspect(connection)
    if create:
        applied = schema.migrate(connection)
        if applied:
            logger.info("schema of %s brought to %s", connection.address, applied[-1])
    else:
        schema.check(connection)
    connection.hold()
    return Store(connection, registry, clock=clock)


def _open_cluster(dsn: str, cluster: str, registry: CollectorRegistry, clock: Callable[[], float]) -> ShardedStore:
    shards = _shards(dsn, cluster)
    metrics = StoreMetrics(registry, lambda: sum(store.segments.dirty_slots() for store in stores))
    stores: list[Store] = []
    followers: list[Follower] = []
    for shard in shards:
        placement = require_placement(cluster, shard, shards, placement_of(shard, ask_once(dsn)))
        connection = Connection(dsn_at(dsn, placement.primary_host), replicas=len(shard.hosts), create=False)
        topology.inspect(connection, cluster=cluster)
        schema.check(connection)
        stores.append(Store(connection, registry, clock=clock, metrics=metrics))
        followers.append(Follower(connection, dsn, shard, placement))
    return ShardedStore(stores, Followers(followers), metrics, clock=clock)


def migrate_store(dsn: str, cluster: str | None) -> Iterator[tuple[str, list[str]]]:
    """Brings every server of the store to this program's schema: yields each one's address and the steps applied.

    On a cluster it speaks to each replica by itself, without ON CLUSTER, whose queue one dead host blocks for all. Safe
    to run twice and to interrupt; run it again when a replica was away. Raises StoreError.
    """
    if cluster is None:
        connection = Connection(dsn)
        topology.inspect(connection)
        yield connection.address, schema.migrate(connection)
        connection.close()
        return
    shards = _shards(dsn, cluster)
    for position, shard in enumerate(shards):
        for host in shard.hosts:
            connection = Connection(dsn_at(dsn, host))
            topology.inspect(connection, cluster=cluster)
            schema.make(connection, schema.Replica(shard.number, host))
            connection.close()
        placement = placement_of(shard, ask_once(dsn)) or Placement(1, position, len(shards), shard.hosts[0])
        primary = Connection(dsn_at(dsn, placement.primary_host), replicas=len(shard.hosts))
        applied = schema.migrate(primary, schema.Replica(shard.number, placement.primary_host))
        place(primary, placement)
        yield primary.address, applied
        primary.close()


def failover_store(
    dsn: str,
    cluster: str,
    shard: int,
    host: str,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Makes the replica on `host` the primary of a shard; see `clickhouse.failover.failover`. Raises StoreError."""
    return failover(dsn, cluster, _shards(dsn, cluster), shard, host, say=say, sleep=sleep)


def _shards(dsn: str, cluster: str) -> list[Shard]:
    if dsn.startswith("chdb:") or not cluster:
        raise StoreSetupError(f"--cluster {cluster!r} needs a name, and a ClickHouse server as --dsn")
    server_arguments(dsn)  # what cannot be read is refused with the DSN as it was given
    connection = Connection(dsn_at(dsn, database="default"), create=False)
    try:
        return shards_of(connection, cluster)
    finally:
        connection.close()
