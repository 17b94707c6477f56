"""How large the store says it is, against the engine, the file system and simple sums."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from clickhouse.connection import Connection
from clickhouse.event import Event
from clickhouse.metrics import StoreMetrics
from clickhouse.size import Size, measure, together
from tests.support.rig import NOW, Rig

NAMES = ("bytes", "free_bytes", "free_ratio", "parts")


@pytest.fixture
def unmerged(connection: Connection) -> Iterator[Rig]:
    """A store whose parts stay as they were inserted."""
    connection.command("SYSTEM STOP MERGES")
    yield Rig(connection)
    connection.command("SYSTEM START MERGES")


def event(number: int, months_ago: int = 0) -> Event:
    at = NOW - timedelta(days=31 * months_ago)
    return Event("org-a", int(at.timestamp() * 1000) + number, f"e-{number}", "agent")


def test_parts_are_those_of_one_partition(unmerged: Rig) -> None:
    for number in range(7):
        unmerged.writer.write([event(number)])
    assert measure(unmerged.connection).parts == 7
    # A backfill: many parts in all, one in each month.
    unmerged.writer.write([event(100 + months, months) for months in range(1, 25)])
    assert measure(unmerged.connection).parts == 7


def test_bytes_are_those_of_the_tables(unmerged: Rig) -> None:
    before = measure(unmerged.connection)
    unmerged.writer.write([event(number) for number in range(5_000)])
    after = measure(unmerged.connection)
    (by_table,) = unmerged.connection.rows(
        "SELECT toUInt64(sum(total_bytes)) FROM system.tables WHERE database = currentDatabase()"
    )
    assert before.bytes < after.bytes == by_table[0]


def test_free_is_what_the_disk_has(embedded_store: Connection) -> None:
    assert embedded_store.path is not None
    size = measure(embedded_store)
    disk = shutil.disk_usage(embedded_store.path)
    assert size.free_bytes is not None
    assert abs(size.free_bytes - disk.free) < disk.total / 20  # others write meanwhile
    assert size.free_ratio == size.free_bytes / (size.free_bytes + size.bytes)


def test_of_shards_the_sum_is_taken_and_the_worst_is_left() -> None:
    roomy, full = Size(900, 12, 100, 0.1), Size(300, 700, 200, 0.4)
    assert together([roomy, full]) == Size(1_200, 700, 100, 0.1)
    unknown = Size(50, 1, None, None)
    assert together([full, unknown]) == Size(350, 700, 200, 0.4)
    assert together([unknown]) == unknown


def test_what_is_not_known_is_not_shown() -> None:
    registry = CollectorRegistry()
    metrics = StoreMetrics(registry)

    def shown() -> list[float | None]:
        return [registry.get_sample_value(f"agentidp_analytics_store_{name}") for name in NAMES]

    assert shown() == [None] * 4
    metrics.measured(Size(10, 3, 90, 0.9))
    assert shown() == [10, 90, 0.9, 3]
    metrics.measured(Size(10, 3, None, None))
    assert shown() == [10, None, None, 3]
