"""The cluster: which servers make a shard, and which of them is its primary.

A cluster is as many stores as it has shards. All of a tenant is in one, chosen here and not by the servers, so nothing
that is counted together lies apart. Replicas are for durability alone: all processes write to, recount on and ask the
one replica of a shard that is its primary, because a recount on another that lags would overwrite good rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreSetupError, StoreUnavailableError

_HOSTS: Final = """
SELECT shard_num, host_name FROM system.clusters WHERE cluster = {cluster:String} ORDER BY shard_num, replica_num"""
_CLUSTERS: Final = "SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster"
_HAS_PLACEMENT: Final = "EXISTS TABLE placement"
_PLACEMENT: Final = "SELECT number, shard, shards, primary_host FROM placement ORDER BY number DESC LIMIT 1"
_PLACEMENT_COLUMNS: Final = ("number", "shard", "shards", "primary_host")
_ENOUGH_REPLICAS: Final = 3


class Placement(NamedTuple):
    """What a shard knows of itself: which of how many it is, and its primary. The one of the highest number is true."""

    number: int
    shard: int
    shards: int
    primary_host: str


class Shard(NamedTuple):
    """A shard as the cluster's configuration has it: its number, from 1, and the hosts of its replicas."""

    number: int
    hosts: tuple[str, ...]

    @property
    def majority(self) -> int:
        """So many of its replicas always have one among them that has seen what a quorum was told."""
        return len(self.hosts) // 2 + 1


def shard_of(tenant_id: str, shards: int) -> int:
    """The position, from 0, of the shard that has all of a tenant; the same in every process, for good."""
    return int.from_bytes(hashlib.blake2b(tenant_id.encode(), digest_size=8).digest()) % shards


def shards_of(connection: Connection, cluster: str) -> list[Shard]:
    """The shards of a cluster, in order. Raises StoreSetupError for one that does not exist or would not survive."""
    hosts: dict[int, list[str]] = {}
    for number, host in connection.rows(_HOSTS, {"cluster": cluster}):
        hosts.setdefault(int(number), []).append(str(host))
    if not hosts:
        known = ", ".join(str(name) for (name,) in connection.rows(_CLUSTERS)) or "none"
        raise StoreSetupError(f"--cluster {cluster} is not known to {connection.address}; it knows {known}")
    for number, replicas in hosts.items():
        if 1 < len(replicas) < _ENOUGH_REPLICAS:
            raise StoreSetupError(
                f"--cluster {cluster}: shard {number} has {len(replicas)} replicas, and writing would stop with the "
                f"first that dies; give it {_ENOUGH_REPLICAS}, or one that is on a disk which survives"
            )
    return [Shard(number, tuple(replicas)) for number, replicas in sorted(hosts.items())]


def dsn_at(dsn: str, host: str = "", *, database: str = "") -> str:
    """The DSN with another host, or database, if one is given; port, user and options stay."""
    parts = urlsplit(dsn)
    if host:
        user, at, _ = parts.netloc.rpartition("@")
        shown = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
        parts = parts._replace(netloc=f"{user}{at}{shown}{port}")
    return urlunsplit(parts._replace(path=f"/{database}") if database else parts)


def placement_at(connection: Connection) -> Placement | None:
    """The newest placement that this replica knows. Raises StoreError."""
    if connection.rows(_HAS_PLACEMENT) != [(1,)]:
        return None
    rows = connection.rows(_PLACEMENT)
    return Placement(*rows[0]) if rows else None


def place(connection: Connection, placement: Placement) -> None:
    """Writes a placement down; returns when a majority of the replicas has it. Raises StoreError."""
    connection.insert("placement", _PLACEMENT_COLUMNS, [[value] for value in placement])


def ask_once(dsn: str) -> Callable[[str], Placement | None]:
    """What asks a replica by its host, over a connection of its own."""

    def ask(host: str) -> Placement | None:
        connection = Connection(dsn_at(dsn, host), create=False)
        try:
            return placement_at(connection)
        finally:
            connection.close()

    return ask


def placement_of(shard: Shard, ask: Callable[[str], Placement | None]) -> Placement | None:
    """The placement of a shard, None if it has none yet.

    All replicas are asked, for one may be cut off and believe what was true before. Raises StoreUnavailableError
    without a majority.
    """
    found: list[Placement | None] = []
    failures: list[StoreError] = []
    for host in shard.hosts:
        try:
            found.append(ask(host))
        except StoreError as error:
            failures.append(error)
    if len(found) < shard.majority:
        raise StoreUnavailableError(
            f"{len(found)} of {len(shard.hosts)} replicas of shard {shard.number} answer, and it takes "
            f"{shard.majority} to know its primary: {failures[0]}"
        )
    return max((placement for placement in found if placement is not None), default=None)


def require_placement(cluster: str, shard: Shard, shards: Sequence[Shard], placement: Placement | None) -> Placement:
    """`placement`, if it is what the cluster's configuration says. Raises StoreSetupError."""
    if placement is None:
        raise StoreSetupError(
            f"--cluster {cluster}: shard {shard.number} has no schema; run agentidp-analytics migrate"
        )
    position = [entry.number for entry in shards].index(shard.number)
    if (placement.shard, placement.shards) != (position, len(shards)):
        raise StoreSetupError(
            f"--cluster {cluster}: shard {shard.number} was made as number {placement.shard + 1} of {placement.shards} "
            f"and is number {position + 1} of {len(shards)} now: its tenants would be looked for elsewhere. Give the "
            "cluster its former shards, or export and ingest into a new database"
        )
    if placement.primary_host not in shard.hosts:
        raise StoreSetupError(
            f"--cluster {cluster}: the primary of shard {shard.number}, {placement.primary_host}, is not in the "
            "cluster any more; name another with agentidp-analytics failover"
        )
    return placement
