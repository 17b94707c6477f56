"""What several test files share: a store of each kind, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clickhouse.connection import Connection
from clickhouse.schema import migrate
from clickhouse.topology import TABLES
from tests.support.bridge.process import Bridge


def empty(connection: Connection) -> Connection:
    """The store without a single row."""
    for table in TABLES:
        connection.command(f"TRUNCATE TABLE {table}")
    return connection


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """One for the session: chDB opens one path a process at a time."""
    connection = Connection(f"chdb://{tmp_path_factory.mktemp('store')}")
    migrate(connection)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A process that speaks ClickHouse's HTTP interface."""
    with Bridge(tmp_path_factory.mktemp("bridge")) as bridge:
        yield bridge


@pytest.fixture(scope="session")
def server_store(bridge: Bridge) -> Iterator[Connection]:
    """The same store behind HTTP."""
    connection = Connection(bridge.dsn_of("analytics"))
    migrate(connection)
    yield connection
    connection.close()


@pytest.fixture(params=["embedded", "server"])
def connection(request: pytest.FixtureRequest) -> Connection:
    """An empty store with the current schema, once embedded and once behind HTTP."""
    return empty(request.getfixturevalue(f"{request.param}_store"))
