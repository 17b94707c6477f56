"""The schema: versioned SQL files, applied once and in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Final, NamedTuple

from clickhouse.connection import Connection, quote_name
from clickhouse.errors import StoreError, StoreSetupError, StoreTooNewError

_FILE_NAME: Final = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")
_CREATE: Final = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)\n")
_ENGINE: Final = re.compile(r"ENGINE = (\w*MergeTree)(?:\(([^)]*)\))?\n")

# For a few events at a time on a machine that does other things as well. Not on a server: its operator sets what suits
# it, and before 26.7 it could not read packed parts.
# - A part below 1 MiB is one file instead of thirteen, each created, synced and removed for itself.
# - Merges wait for ten parts of a size. With the engine's five, a merge of five small parts with a large one passes the
#   selector, which then leaves out the small ones but one: every insert rewrites the large part of its month.
_EMBEDDED_SETTINGS: Final = "min_bytes_for_full_part_storage = 1048576, merge_selector_base = 10"

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


def migrate(connection: Connection) -> list[str]:
    """Brings the store to this program's schema; returns the names of the steps that were applied.

    Safe to run twice and to interrupt. Raises StoreTooNewError before touching a store that a newer program
    has migrated.
    """
    for statement in ddl(_HISTORY_TABLE, connection.cluster, embedded=connection.embedded):
        connection.command(statement)
    applied = _applied(connection)
    _refuse_newer(connection, applied)
    done = []
    for migration in migrations():
        if migration.version not in applied:
            for statement in migration.statements:
                for part in ddl(statement, connection.cluster, embedded=connection.embedded):
                    connection.command(part)
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


def ddl(statement: str, cluster: str | None, *, embedded: bool = False) -> Iterator[str]:
    """`statement` as it runs on this store.

    On a cluster each table becomes a replicated `<name>_local` and a Distributed table sharded by tenant, so that
    everything counted together lies on one shard. The tables of an embedded store are set up for small inserts.
    """
    if cluster is None:
        yield statement.replace("\nSETTINGS ", f"\nSETTINGS {_EMBEDDED_SETTINGS}, ") if embedded else statement
        return
    create, engine = _CREATE.search(statement), _ENGINE.search(statement)
    if create is None or engine is None:
        raise StoreError(f"this migration has no form for a cluster: {statement[:60]}")
    table = create[1]
    on_cluster = f"ON CLUSTER {quote_name(cluster)}"
    arguments = f"'/clickhouse/tables/{{shard}}/{{database}}/{table}', '{{replica}}'"
    if engine[2]:
        arguments += f", {engine[2]}"
    local = statement.replace(create[0], f"CREATE TABLE IF NOT EXISTS {table}_local {on_cluster}\n")
    yield local.replace(engine[0], f"ENGINE = Replicated{engine[1]}({arguments})\n")
    sharding_key = "sipHash64(tenant_id)" if "tenant_id" in statement else "version"
    yield (
        f"CREATE TABLE IF NOT EXISTS {table} {on_cluster} AS {table}_local\n"
        f"ENGINE = Distributed({quote_name(cluster)}, currentDatabase(), {table}_local, {sharding_key})"
    )


def _applied(connection: Connection) -> set[int]:
    return {version for (version,) in connection.rows("SELECT version FROM schema_history")}


def _statements(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [statement.strip(" \n;") for statement in "\n".join(lines).split(";\n") if statement.strip(" \n;")]
