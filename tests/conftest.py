"""What several test files share: a store of each kind, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clickhouse.schema import migrate
from clickhouse.store import Store
from tests.bridge.process import Bridge

TABLES = ("events", "marks", "agent_slot", "tenant_slot", "agent_day", "tenant_day", "counters", "removals")


def empty(store: Store) -> Store:
    """The store without a single row."""
    for table in TABLES:
        store.command(f"TRUNCATE TABLE {table}")
    return store


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One for the session: chDB opens one path a process at a time."""
    store = Store(f"chdb://{tmp_path_factory.mktemp('store')}")
    migrate(store)
    yield store
    store.close()


@pytest.fixture(scope="session")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A process that speaks ClickHouse's HTTP interface."""
    with Bridge(tmp_path_factory.mktemp("bridge")) as bridge:
        yield bridge


@pytest.fixture(scope="session")
def server_store(bridge: Bridge) -> Iterator[Store]:
    """The same store behind HTTP."""
    store = Store(bridge.dsn_of("analytics"))
    migrate(store)
    yield store
    store.close()


@pytest.fixture(params=["embedded", "server"])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store with the current schema, once embedded and once behind HTTP."""
    return empty(request.getfixturevalue(f"{request.param}_store"))
