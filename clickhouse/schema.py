"""The schema: versioned SQL files, applied once and in order."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final, NamedTuple

from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreSetupError, StoreTooNewError

_FILE_NAME: Final = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")
_CHANGE: Final = re.compile(r"ALTER TABLE \w+\n|INSERT INTO \w+ ")
_CREATE: Final = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)\n")
_ENGINE: Final = re.compile(r"ENGINE = (\w*MergeTree)(?:\(([^)]*)\))?\n")

# For a few events at a time on a machine that does other things as well. Not on a server: its operator sets what suits
# it, and before 26.7 it could not read packed parts.
# - A part below 1 MiB is one file instead of thirteen, each created, synced and removed for itself.
# - Merges wait for ten parts of a size. With the engine's five, a merge of five small parts with a large one passes the
#   selector, which then leaves out the small ones but one: every insert rewrites the large part of its month.
_EMBEDDED_SETTINGS: Final = "min_bytes_for_full_part_storage = 1048576, merge_selector_base = 10"

# What a replica fetches from another one is synced as an insert is.
_REPLICATED_SETTINGS: Final = "min_compressed_bytes_to_fsync_after_fetch = 1, min_rows_to_fsync_after_merge = 1"

# Of a cluster's shard: which of how many it is, and which replica is its primary.
_PLACEMENT_TABLE: Final = """CREATE TABLE IF NOT EXISTS placement
(
    number UInt64,
    shard UInt32,
    shards UInt32,
    primary_host String
)
ENGINE = ReplacingMergeTree
ORDER BY number
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"""

_HISTORY_TABLE: Final = """CREATE TABLE IF NOT EXISTS schema_history
(
    version UInt32,
    name String
)
ENGINE = ReplacingMergeTree
ORDER BY version
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"""


class Migration(NamedTuple):
    """One step of the schema; every statement can be run again, so a crash between two of them does no harm."""

    version: int
    name: str
    statements: list[str]


def migrations() -> list[Migration]:
    """The steps that this program knows, oldest first."""
    found = []
    for file in files("clickhouse").joinpath("migrations").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], _statements(file.read_text(encoding="utf-8"))))
    return sorted(found)


class Replica(NamedTuple):
    """Which server of a cluster it is: the number of its shard, and its host."""

    shard: int
    host: str


def make(connection: Connection, replica: Replica) -> None:
    """Makes the tables on one replica; those that are there stay. Raises StoreError."""
    for statement in (_PLACEMENT_TABLE, _HISTORY_TABLE, *(each for step in migrations() for each in step.statements)):
        if _CREATE.search(statement):  # changes and data come from the primary
            connection.command(ddl(statement, replica))


def migrate(connection: Connection, replica: Replica | None = None) -> list[str]:
    """Brings the store to this program's schema; returns the names of the steps that were applied.

    Safe to run twice and to interrupt. On the primary of a shard, after `make` on all its replicas. Raises
    StoreTooNewError before touching a store that a newer program has migrated.
    """
    connection.command(ddl(_HISTORY_TABLE, replica, embedded=connection.embedded))
    applied = _applied(connection)
    _refuse_newer(connection, applied)
    done = []
    for migration in migrations():
        if migration.version not in applied:
            for statement in migration.statements:
                connection.command(ddl(statement, replica, embedded=connection.embedded))
            connection.insert("schema_history", ["version", "name"], [[migration.version], [migration.name]])
            done.append(f"{migration.version:04d}_{migration.name}")
    return done


def check(connection: Connection) -> None:
    """Raises StoreError unless the store answers and has exactly this program's schema."""
    exists = connection.rows("EXISTS TABLE schema_history") == [(1,)]
    applied = _applied(connection) if exists else set()
    _refuse_newer(connection, applied)
    missing = [migration for migration in migrations() if migration.version not in applied]
    if missing:
        raise StoreSetupError(
            f"--dsn {connection.address} has no schema {missing[0].version:04d}_{missing[0].name}; "
            "run agentidp-analytics migrate"
        )


def _refuse_newer(connection: Connection, applied: set[int]) -> None:
    newest = max(migration.version for migration in migrations())
    if max(applied, default=0) > newest:
        raise StoreTooNewError(
            f"--dsn {connection.address}: the store has schema {max(applied)}, this program knows up to {newest}; "
            "use the newer agentidp-analytics, or another store"
        )


def ddl(statement: str, replica: Replica | None, *, embedded: bool = False) -> str:
    """`statement` as it runs on this store.

    On a cluster each table is replicated within its shard; the path says which, so no macro of the servers can be
    wrong. The tables of an embedded store are set up for small inserts.
    """
    if replica is None:
        return statement.replace("\nSETTINGS ", f"\nSETTINGS {_EMBEDDED_SETTINGS}, ") if embedded else statement
    if _CHANGE.match(statement):
        return statement
    create, engine = _CREATE.search(statement), _ENGINE.search(statement)
    if create is None or engine is None:
        raise StoreError(f"this migration has no form for a cluster: {statement[:60]}")
    path = f"/clickhouse/agentidp_analytics/{{database}}/{replica.shard}/{create[1]}"
    arguments = f"{_quoted(path)}, {_quoted(replica.host)}" + (f", {engine[2]}" if engine[2] else "")
    made = statement.replace(engine[0], f"ENGINE = Replicated{engine[1]}({arguments})\n")
    return made.replace("\nSETTINGS ", f"\nSETTINGS {_REPLICATED_SETTINGS}, ")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _applied(connection: Connection) -> set[int]:
    return {version for (version,) in connection.rows("SELECT version FROM schema_history")}


def _statements(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [statement.strip(" \n;") for statement in "\n".join(lines).split(";\n") if statement.strip(" \n;")]
