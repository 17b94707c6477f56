"""The topology: what kind of ClickHouse a DSN leads to, found out once at the start.

Most of what is refused here would work for weeks, and then lose an answered event without a word: an event that was
written to one replica and recounted on another that has not fetched it yet, or marks that are read from a third.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreSetupError

OLDEST_VERSION: Final = (24, 3)
CLOCK_SECONDS: Final = 15.0  # two processes are then well within the age at which segments are taken over
TABLES: Final = (
    "events", "marks", "agent_slot", "tenant_slot", "agent_day", "tenant_day", "counters", "removals", "agent_hour",
    "tenant_hour", "agent_waste", "agent_network", "agent_spread", "agent_habit", "agent_norm", "tenant_norm",
    "verdicts", "detection",
)  # fmt: skip
_PROBES: Final = 4
_GRANTS: Final = ("SELECT", "INSERT", "ALTER DELETE", "ALTER UPDATE", "OPTIMIZE")

_FACTS: Final = "SELECT version(), toUnixTimestamp64Milli(now64(3)) / 1000"
_SETTINGS: Final = "SELECT name, value FROM system.settings WHERE name IN ('readonly', 'cloud_mode')"
_ENGINES: Final = """
SELECT name, engine FROM system.tables
WHERE database = currentDatabase() AND name IN {tables:Array(String)} ORDER BY name"""
_SERVER: Final = "SELECT concat(hostName(), ' ', toString(serverUUID()))"
_GRANTED: Final = f"CHECK GRANT {', '.join(_GRANTS)} ON *"


class Topology(StrEnum):
    """What the statements of this process run on."""

    EMBEDDED = "embedded"
    SERVER = "single server"
    CLOUD = "ClickHouse Cloud"
    CLUSTER = "replicated cluster"


def inspect(connection: Connection, *, cluster: str | None = None, clock: Callable[[], float] = time.time) -> Topology:
    """What `connection` leads to; sends the settings that it needs from then on. `cluster` is the one it is a
    replica of, `clock` gives Unix seconds.

    Raises StoreSetupError, in one line that says what to change, for what would lose events or answer wrongly; nothing
    was changed then.
    """
    if connection.embedded:
        return Topology.EMBEDDED
    version, now = connection.rows(_FACTS)[0]
    _require_version(connection, str(version))
    apart = clock() - float(now)
    if abs(apart) > CLOCK_SECONDS:
        raise _refused(
            connection,
            f"this machine's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the server's; "
            f"set both, they may be {CLOCK_SECONDS:.0f} s apart",
        )
    settings = dict(connection.rows(_SETTINGS))
    if settings.get("readonly", "0") != "0":
        raise _refused(
            connection, f"the user may only read (readonly = {settings['readonly']}); give one that may write"
        )
    topology = _by_engines(connection, cluster, is_cloud=settings.get("cloud_mode", "0") != "0")
    if topology is Topology.CLOUD:
        # Any of its servers may answer, and each has to know first what the others have written.
        connection.send_settings({"select_sequential_consistency": 1})
    else:
        _require_one_server(connection)
    _require_grants(connection)
    return topology


def _require_version(connection: Connection, version: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise _refused(connection, f"the server is ClickHouse {version}; {oldest} is the oldest that will do")


def _by_engines(connection: Connection, cluster: str | None, *, is_cloud: bool) -> Topology:
    engines = dict(connection.rows(_ENGINES, {"tables": list(TABLES)}))
    shared = [name for name, engine in engines.items() if engine.startswith("Shared")]
    replicated = [name for name, engine in engines.items() if engine.startswith("Replicated")]
    if cluster is not None:
        if shared or is_cloud:
            raise _refused(connection, f"this is ClickHouse Cloud; leave out --cluster {cluster}")
        if engines and not replicated:
            raise _refused(connection, "its tables are not replicated; leave out --cluster, or give another database")
        return Topology.CLUSTER
    if replicated:
        raise _refused(
            connection,
            f"the table {replicated[0]} is replicated, and a replica that lags would be believed; name the cluster "
            "with --cluster, or give a database without replication",
        )
    return Topology.CLOUD if shared or is_cloud else Topology.SERVER


def _require_one_server(connection: Connection) -> None:
    """A connection each, because a balancer chooses by connection."""
    names = sorted({str(connection.fresh_rows(_SERVER)[0][0]) for _ in range(_PROBES)})
    if len(names) > 1:
        raise _refused(
            connection,
            f"several servers answer there ({names[0].split()[0]}, {names[1].split()[0]}), as behind a balancer: what "
            "is written to one is not on the other; name one server",
        )


def _require_grants(connection: Connection) -> None:
    try:
        is_granted = connection.text(_GRANTED).strip() == b"1"
    except StoreError:
        return  # a server older than the statement, which then refuses what is not granted when it is needed
    if not is_granted:
        raise _refused(
            connection, f"the user lacks one of {', '.join(_GRANTS)} on the database; see docs/clickhouse-grants.sql"
        )


def _refused(connection: Connection, why: str) -> StoreSetupError:
    return StoreSetupError(f"--dsn {connection.address}: {why}")
