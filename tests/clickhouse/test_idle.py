"""What a few events at a time make the engine do, and what nothing at all does."""

from __future__ import annotations

import hashlib
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clickhouse.connection import Connection
from clickhouse.event import Event
from clickhouse.rollups import SLOTS_IN_A_LIST
from clickhouse.totals import _FLEET
from tests.conftest import empty
from tests.support.oracle import Oracle
from tests.support.rig import NOW, Rig
from tests.support.service import Service, wait_for

NOW_MS = int(NOW.timestamp() * 1000)


def event(number: int, tenant: str = "org-a", minutes_ago: int = 0) -> Event:
    event_id = hashlib.md5(str(number).encode()).hexdigest()
    return Event(tenant, NOW_MS - minutes_ago * 60_000 - number % 1000, event_id, f"agent-{number % 7}")


def active_parts(connection: Connection, table: str) -> list[tuple[str, int, str]]:
    """(name, rows, storage) of a table's parts, largest first."""
    return connection.rows(
        "SELECT name, rows, part_storage_type FROM system.parts WHERE database = currentDatabase() "
        "AND table = {table:String} AND active ORDER BY rows DESC",
        {"table": table},
    )


def test_small_inserts_do_not_rewrite_the_large_part_of_their_month(embedded_store: Connection) -> None:
    rig = Rig(empty(embedded_store))
    rig.writer.write([event(number) for number in range(15_000)])
    large = active_parts(embedded_store, "events")[0]
    for number in range(15_000, 15_040):
        rig.writer.write([event(number)])
    wait_for(lambda: len(active_parts(embedded_store, "events")) < 25, 60)  # of 41, so merges did run
    assert active_parts(embedded_store, "events")[0] == large
    rig.upkeep.settle()
    rig.agree(Oracle(event(number) for number in range(15_040)))


def test_a_small_part_of_an_embedded_store_is_one_file(embedded_store: Connection) -> None:
    rig = Rig(empty(embedded_store))
    rig.writer.write([event(1)])
    assert [storage for _, _, storage in active_parts(embedded_store, "marks")] == ["Packed"]
    rig.upkeep.settle()
    for table in ("events", "agent_slot", "tenant_slot", "agent_day", "tenant_day"):
        assert {storage for _, _, storage in active_parts(embedded_store, table)} == {"Packed"}


def test_a_recount_is_one_statement_for_each_thing_it_does(embedded_store: Connection) -> None:
    rig = Rig(empty(embedded_store))
    rig.writer.write([event(1)])

    def statements() -> int:
        asked = "SELECT value FROM system.events WHERE event = 'InitialQuery'"
        return int(embedded_store.rows(asked)[0][0])

    before = statements()
    rig.upkeep.settle()
    # The marks, the counts before and after, four rollups, the marks' end, and the question itself.
    assert statements() - before == 9


@pytest.mark.parametrize("slots", [1, SLOTS_IN_A_LIST, SLOTS_IN_A_LIST + 1])
def test_few_slots_and_many_are_recounted_alike(connection: Connection, slots: int) -> None:
    rig = Rig(connection)
    events = [event(slot, f"org-{slot % 3}", minutes_ago=15 * slot) for slot in range(slots)]
    rig.writer.write(events)
    rig.upkeep.settle()
    assert rig.open_marks() == 0
    rig.agree(Oracle(events))
    rig.writer.write(events)
    rig.upkeep.settle()
    assert rig.value("agentidp_analytics_duplicates_found_total") == slots


class Asked:
    """A connection that counts how often all tenants' figures are asked for."""

    def __init__(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        columns = connection.columns

        def counted(sql: str, *arguments: object) -> list[list[object]]:
            self.times += sql == _FLEET
            return columns(sql, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(connection, "columns", counted)


def test_the_totals_of_an_embedded_store_are_asked_for_when_they_can_have_changed(
    embedded_store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = NOW
    rig = Rig(empty(embedded_store), clock=lambda: now.timestamp())
    asked = Asked(embedded_store, monkeypatch)
    rig.writer.write([event(1)])
    rig.upkeep.settle()
    assert rig.shown().tokens_issued == [1]
    rig.read.read()  # what was just recorded is a change too
    times = asked.times
    assert [rig.read.read().tokens_issued for _ in range(3)] == [[1]] * 3
    assert asked.times == times
    rig.writer.write([event(2)])
    rig.upkeep.settle()
    assert rig.read.read().tokens_issued == [2]
    times = asked.times
    now += timedelta(hours=24)
    assert rig.read.read().active_agents == [0]
    now = datetime(2026, 12, 1, tzinfo=UTC)
    assert rig.read.read().month_tokens == [0]
    assert asked.times == times + 2


def test_the_totals_of_a_server_are_asked_for_each_time(
    server_store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(empty(server_store))
    rig.shown()
    other = Rig(Connection(server_store.dsn))
    other.writer.write([event(1)])
    other.upkeep.settle()
    other.connection.close()
    assert rig.shown().tokens_issued == [1]


def test_a_store_that_is_gone_is_not_one_where_nothing_happens(tmp_path: Path) -> None:
    with Service(tmp_path, "--refresh-interval", "0.2s") as service:
        wait_for(lambda: service.value("agentidp_analytics_refreshes_total") > 3, 30)
        assert service.value("agentidp_analytics_up") == 1
        shutil.rmtree(tmp_path / "store")
        wait_for(lambda: service.value("agentidp_analytics_up") == 0, 30)
