"""What several test files share: a store of each kind, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clickhouse.schema import migrate
from clickhouse.store import Store

TABLES = ("events", "marks", "agent_slot", "tenant_slot", "agent_day", "tenant_day", "counters", "removals")


def empty(store: Store) -> Store:
    """The store without a single row."""
    for table in TABLES:
        store.command(f"TRUNCATE TABLE {table}")
    return store


@pytest.fixture(scope="session")
def _embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    # One for the session: chDB opens one path a process at a time.
    store = Store(f"chdb://{tmp_path_factory.mktemp('store')}")
    migrate(store)
    yield store
    store.close()


@pytest.fixture
def store(_embedded: Store) -> Store:
    """An empty embedded store with the current schema."""
    return empty(_embedded)
