"""The smoke test of a cluster, for whoever has one: what holds on it and what does not, one line each.

It needs a database of its own, which it fills, and leaves it migrated with the events of one tenant.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry

from clickhouse.cluster import Shard, ask_once, dsn_at, placement_of, shard_of, shards_of
from clickhouse.connection import Connection
from clickhouse.dsn import redact
from clickhouse.errors import StoreError, StoreSetupError
from clickhouse.event import Event
from clickhouse.failover import sync
from clickhouse.open_store import failover_store, migrate_store, open_store
from clickhouse.queries import tenant_fence
from clickhouse.sharded import ShardedStore
from clickhouse.statement_settings import QUORUM
from clickhouse.tenant import TenantId

_TENANTS: Final = tuple(f"smoke-{number}" for number in range(12))
_TABLES: Final = ("events", "marks", "agent_slot", "tenant_slot", "agent_day", "tenant_day")
_VERSION: Final = "SELECT version()"
_NEEDED: Final = (*QUORUM, "deduplicate_insert", "max_insert_threads")
_KNOWN: Final = "SELECT name FROM system.settings WHERE name IN {names:Array(String)}"
# Unknown table or setting, time-outs, quorum not met, a lagging replica, unknown outcome, a mutation that failed.
_ERRORS: Final = "SELECT name, value FROM system.errors WHERE code IN (60, 115, 159, 286, 289, 319, 341) ORDER BY name"
_ROWS: Final = "SELECT count() FROM {table:Identifier} FINAL"
_OTHERS: Final = "SELECT count() FROM events WHERE tenant_id != {tenant:String}"


class Report:
    """The lines so far, and whether one of them failed."""

    def __init__(self) -> None:
        self.failed = 0

    @contextmanager
    def check(self, what: str) -> Iterator[None]:
        """Prints whether what is done inside holds; an AssertionError or StoreError says why not."""
        started = time.monotonic()
        try:
            yield
        except (AssertionError, StoreError) as error:
            self.failed += 1
            print(f"FAILS  {what}: {error}", flush=True)  # noqa: T201
        else:
            print(f"holds  {what} ({time.monotonic() - started:.1f} s)", flush=True)  # noqa: T201


def holds(condition: object, why: object) -> None:
    """Raises AssertionError with `why` unless the condition holds; not `assert`, which -O leaves out."""
    if not condition:
        raise AssertionError(str(why))


def smoke(dsn: str, cluster: str, events: int, sleep: Callable[[float], None] = time.sleep) -> int:
    """Runs all checks; returns how many failed."""
    report = Report()
    start = Connection(dsn_at(dsn, database="default"), create=False)
    shards = shards_of(start, cluster)
    start.close()
    with report.check("every replica answers, all with one version and the settings that are sent"):
        for found in _everywhere(dsn, shards, lambda c: (c.rows(_VERSION), len(c.rows(_KNOWN, {"names": [*_NEEDED]})))):
            holds(found[1] == len(_NEEDED), f"a server does not know all of {', '.join(_NEEDED)}")
    with report.check("migrate, twice"):
        list(migrate_store(dsn, cluster))
        holds(not [step for _, applied in migrate_store(dsn, cluster) for step in applied], "it was not done")
    before = _everywhere(dsn, shards, lambda c: dict(c.rows(_ERRORS)))
    opened = open_store(dsn, cluster, CollectorRegistry())
    holds(isinstance(opened, ShardedStore), "not a cluster")
    with opened as store:
        if not isinstance(store, ShardedStore):  # for the type checker
            return 1
        if next(store.export(), None) is not None:
            raise StoreSetupError(f"--dsn {redact(dsn)} has events already; give a database for this test alone")
        made = [_event(number) for number in range(events)]
        with report.check(f"{events:,} events from two writers at once, answered by a quorum"):
            with ThreadPoolExecutor(2) as writers:
                list(writers.map(store.writer.write, _batches(made)))
            store.upkeep.settle()
        with report.check("questions, and no other tenant's rows behind the fence"):
            for tenant in _TENANTS:
                counted = _counted(store, tenant)
                holds(counted == sum(one.tenant_id == tenant for one in made), f"{tenant}: {counted}")
            tenant = _TENANTS[0]
            of = store.shards[shard_of(tenant, len(shards))].connection
            fence = {"additional_table_filters": tenant_fence(TenantId(tenant))}
            holds(of.rows(_OTHERS, {"tenant": tenant}, fence) == [(0,)], "the engine shows them")
        with report.check("all replicas of a shard hold the same rows"):
            for shard in shards:
                rows = _everywhere(dsn, [shard], _rows_of_all_tables)
                holds(all(each == rows[0] for each in rows), f"shard {shard.number}: {rows}")
        with report.check("writing goes on while one replica fetches nothing"):
            placement = placement_of(shards[0], ask_once(dsn))
            idle = next(host for host in shards[0].hosts if placement and host != placement.primary_host)
            stopped = Connection(dsn_at(dsn, idle), create=False)
            stopped.command("SYSTEM STOP FETCHES")
            try:
                store.writer.write([_event(events + number) for number in range(100)])
            finally:
                stopped.command("SYSTEM START FETCHES")
                stopped.close()
        with report.check("erasure, and the same events again within the hour"):
            tenant = _TENANTS[0]
            own = [one for one in made if one.tenant_id == tenant]
            store.removal.erase(TenantId(tenant), None, datetime.now(UTC))
            store.writer.write(own)
            counted = _counted(store, tenant)
            holds(counted == len(own), f"{counted} of {len(own)} came back")
        with report.check("failover to another replica and back, with this process following"):
            placement = placement_of(shards[0], ask_once(dsn))
            other = next(host for host in shards[0].hosts if placement and host != placement.primary_host)
            for host in (other, placement.primary_host if placement else other):
                failover_store(dsn, cluster, shards[0].number, host, lambda text: None, sleep)
                store.followers.follow()
                store.writer.write([_event(2 * events)])
        with report.check("verify"):
            store.upkeep.settle()
            holds(not (found := store.verify().differences), found[:3])
    with report.check("no error of the kinds that lose or refuse events was counted meanwhile"):
        after = _everywhere(dsn, shards, lambda c: dict(c.rows(_ERRORS)))
        for was, now in zip(before, after, strict=True):
            risen = {name: count - was.get(name, 0) for name, count in now.items() if count > was.get(name, 0)}
            holds(not risen, risen)
    return report.failed


def _everywhere(dsn: str, shards: list[Shard], ask: Callable[[Connection], Any]) -> list[Any]:
    """The answers of every replica. Raises StoreError."""
    found = []
    for host in (host for shard in shards for host in shard.hosts):
        connection = Connection(dsn_at(dsn, host))
        try:
            found.append(ask(connection))
        finally:
            connection.close()
    return found


def _counted(store: ShardedStore, tenant: str) -> int:
    return sum(count for _, count in store.queries().trend(TenantId(tenant), datetime.now(UTC).date(), 90))


def _rows_of_all_tables(connection: Connection) -> list[int]:
    sync(connection)
    return [int(connection.rows(_ROWS, {"table": table})[0][0]) for table in _TABLES if table != "marks"]


def _event(number: int) -> Event:
    moment = int(time.time() * 1000) - number % (20 * 86_400) * 1000
    serial = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
    return Event(_TENANTS[number % len(_TENANTS)], moment, serial, f"agent-{number % 50}")


def _batches(events: list[Event], size: int = 20_000) -> list[list[Event]]:
    return [events[start : start + size] for start in range(0, len(events), size)]


def main() -> None:
    """The command line of `deploy/cluster-smoke`."""
    parser = argparse.ArgumentParser(prog="cluster-smoke", description=__doc__)
    parser.add_argument("--dsn", required=True, help="any server of the cluster, with a database for this test alone")
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    try:
        failed = smoke(arguments.dsn, arguments.cluster, arguments.events)
    except StoreError as error:
        sys.exit(f"cluster-smoke: {error}")
    sys.exit(f"{failed} checks failed" if failed else 0)


if __name__ == "__main__":
    main()
