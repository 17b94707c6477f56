"""The store behind HTTP: outages, answers that get lost, several writers; and the schema of a cluster."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from clickhouse import schema
from clickhouse.audit import verify
from clickhouse.commit import GroupCommit
from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreSetupError, StoreUnavailableError
from clickhouse.event import Event
from clickhouse.marks import ORPHAN_AFTER_SECONDS
from clickhouse.metrics import StoreMetrics
from clickhouse.removal import Removed
from clickhouse.tenant import TenantId
from tests.conftest import empty
from tests.support.bridge.process import Bridge
from tests.support.oracle import Oracle
from tests.support.rig import NOW, Rig


def event(serial: str, tenant: str = "org-a", hours_ago: float = 1.0) -> Event:
    at = NOW - timedelta(hours=hours_ago)
    return Event(tenant, int(at.timestamp() * 1000), serial, f"agent-{hash(serial) % 3}")


@pytest.fixture
def rig(server_store: Connection, bridge: Bridge) -> Rig:
    bridge.reset()
    return Rig(empty(server_store))


def test_a_failed_insert_is_told_and_the_next_one_works(rig: Rig, bridge: Bridge) -> None:
    bridge.fail("before", 1, "events")
    with pytest.raises(StoreUnavailableError):
        rig.writer.write([event("e1")])
    rig.writer.write([event("e1")])
    rig.agree(Oracle([event("e1")]))


@pytest.mark.parametrize("mode", ["after", "drop"])
def test_an_insert_whose_answer_is_lost_may_be_sent_again(rig: Rig, bridge: Bridge, mode: str) -> None:
    events = [event(f"e{number}") for number in range(10)]
    bridge.fail(mode, 1, "events")
    try:
        rig.writer.write(events)
    except StoreUnavailableError:
        rig.agree(Oracle(events))  # it did land, so it is counted, and its slot is read from raw
        rig.writer.write(events)
    rig.agree(Oracle(events))
    rig.upkeep.settle()
    rig.agree(Oracle(events))


def test_events_that_land_after_their_insert_was_given_up_are_counted(rig: Rig, bridge: Bridge) -> None:
    hasty = Rig(Connection(bridge.dsn_of("analytics"), insert_timeout=1))
    bridge.fail("hang", 1, "events")
    with pytest.raises(StoreUnavailableError):
        hasty.writer.write([event("e1")])
    hasty.upkeep.settle()
    bridge.reset(land=True)
    hasty.agree(Oracle([event("e1")]))
    hasty.connection.close()


def test_a_server_that_is_down_and_back(tmp_path: Path) -> None:
    with Bridge(tmp_path) as bridge:
        connection = Connection(bridge.dsn)
        schema.migrate(connection)
        rig = Rig(connection)
        rig.writer.write([event("e1")])
        bridge.kill()
        with pytest.raises(StoreUnavailableError):
            rig.writer.write([event("e2")])
        with pytest.raises(StoreUnavailableError):
            rig.agree(Oracle([event("e1")]))
        bridge.restart()
        rig.agree(Oracle([event("e1")]))
        rig.writer.write([event("e2")])
        rig.agree(Oracle([event("e1"), event("e2")]))
        connection.close()


def test_group_commit_bounds_what_waits_and_recovers(rig: Rig, bridge: Bridge) -> None:
    async def scenario() -> None:
        commit = GroupCommit(rig.writer, StoreMetrics(CollectorRegistry()), max_waiting=10)
        await commit.start()
        bridge.fail("hang", 2, "marks")
        held = [asyncio.create_task(commit.write([event(f"h{number}")])) for number in range(2)]
        await asyncio.to_thread(bridge.wait_hanging, 1)
        full = asyncio.create_task(commit.write([event(f"w{number}") for number in range(8)]))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="waiting"):
            await commit.write([event("too-many")])
        await asyncio.to_thread(bridge.reset, land=True)
        await asyncio.gather(*held, full, return_exceptions=True)
        await commit.write([event("after")])
        await commit.stop()
        with pytest.raises(StoreUnavailableError, match="stopping"):
            await commit.write([event("late")])

    asyncio.run(scenario())
    rig.upkeep.settle()
    assert rig.asked.agents(TenantId("org-a"), NOW.date()) is not None  # the store answers again


def test_a_committer_that_died_or_hangs_is_told_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, bridge: Bridge
) -> None:
    def die(_: GroupCommit) -> None:
        raise RuntimeError("a defect")

    async def scenario() -> None:
        commit = GroupCommit(rig.writer, StoreMetrics(CollectorRegistry()))
        await commit.start()
        await commit.write([event("e1")])
        commit.check()
        bridge.fail("hang", 1, "events")
        hanging = asyncio.create_task(commit.write([event("e2")]))
        await asyncio.to_thread(bridge.wait_hanging, 1)
        commit.check()
        monkeypatch.setattr("clickhouse.commit.STUCK_SECONDS", 0.0)
        with pytest.raises(StoreUnavailableError, match="under way"):
            commit.check()
        await asyncio.to_thread(bridge.reset, land=True)
        await hanging
        commit.check()
        monkeypatch.setattr(GroupCommit, "_take", die)
        with pytest.raises(StoreUnavailableError, match="committer"):
            await commit.write([event("e3")])
        with pytest.raises(StoreUnavailableError, match="committer"):
            commit.check()
        with pytest.raises(StoreUnavailableError, match="committer"):
            await commit.write([event("e4")])
        await commit.stop()

    asyncio.run(scenario())


def test_four_writers_on_one_server_converge(server_store: Connection, bridge: Bridge) -> None:
    bridge.reset()
    empty(server_store)
    stores = [Connection(bridge.dsn_of("analytics")) for _ in range(4)]
    rigs = [Rig(connection, clock=time.time) for connection in stores]
    batches = [
        [
            [event(f"{number}-{step}-{i}", ("org-a", "org-b")[i % 2], hours_ago=i % 5) for i in range(10)]
            + [event(f"shared-{step}-{i}", hours_ago=i % 3) for i in range(5)]
            for step in range(10)
        ]
        for number in range(4)
    ]
    failures: list[BaseException] = []

    def work(rig: Rig, own: list[list[Event]]) -> None:
        try:
            for batch in own:
                rig.writer.write(batch)
                rig.upkeep.settle()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(rigs, batches, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    oracle = Oracle(one for own in batches for batch in own for one in batch)
    for rig in rigs:
        rig.agree(oracle)
    assert rigs[0].open_marks() == 0
    assert verify(rigs[0].connection).differences == []
    for connection in stores:
        connection.close()


def test_processes_whose_clocks_are_hours_apart_recount_the_same_slots(
    server_store: Connection, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which row wins is for one clock to say, the server's."""
    bridge.reset()
    empty(server_store)
    others = Connection(bridge.dsn_of("analytics"))
    ahead, behind = Rig(server_store, clock=lambda: time.time() + 7_200), Rig(others, clock=lambda: time.time() - 7_200)
    events = [event(f"e{number}") for number in range(20)]
    for number, one in enumerate(events):
        rig, offset = ((ahead, 7_200), (behind, -7_200))[number % 2]
        now = time.time_ns() + offset * 10**9
        monkeypatch.setattr("clickhouse.rollups.time.time_ns", lambda now=now: now)
        rig.writer.write([one])
        rig.upkeep.settle()
    for rig in (ahead, behind):
        rig.agree(Oracle(events))
    assert verify(others).differences == []
    others.close()


def test_a_process_that_was_taken_for_dead_counts_what_it_still_wrote(server_store: Connection, bridge: Bridge) -> None:
    """A process whose clock is far ahead takes over segments in which another one still writes."""
    bridge.reset()
    empty(server_store)
    others = Connection(bridge.dsn_of("analytics"))
    slow, hasty = Rig(server_store), Rig(others, clock=lambda: NOW.timestamp() + ORPHAN_AFTER_SECONDS + 1)
    slow.writer.write([event("first")])
    assert hasty.upkeep.repair() is not None
    slow.writer.write([event("second")])  # under a mark that is closed
    others.command("OPTIMIZE TABLE marks FINAL")
    slow.upkeep.settle()
    for rig in (slow, hasty):
        rig.agree(Oracle([event("first"), event("second")]))
    assert slow.open_marks() == 0
    assert verify(others).differences == []
    others.close()


def test_a_recount_waits_while_the_clock_of_the_server_is_behind_its_rollups(
    server_store: Connection, bridge: Bridge
) -> None:
    bridge.reset()
    empty(server_store)
    rig = Rig(server_store)
    rig.writer.write([event("first")])
    rig.upkeep.settle()
    later = int(time.time() * 10**9) + 3_600 * 10**9
    day = f"{NOW:%Y-%m-%d}"
    server_store.command(
        "INSERT INTO agent_day (tenant_id, day, agent_id, issued, failed, generation) "
        f"SELECT 'org-a', '{day}', 'agent', 1, 0, {later}"
    )
    rig.writer.write([event("second")])
    with pytest.raises(StoreUnavailableError, match="clock of the server was set back"):
        rig.upkeep.settle()
    rig.agree(Oracle([event("first"), event("second")]))  # its mark is open: answered from the events
    server_store.command(f"ALTER TABLE agent_day DELETE WHERE generation = {later}", mutations_sync=2)
    rig.upkeep.settle()
    assert rig.open_marks() == 0
    assert verify(server_store).differences == []


def test_an_erasure_waits_for_what_another_process_is_recounting(server_store: Connection, bridge: Bridge) -> None:
    bridge.reset()
    empty(server_store)
    others = Connection(bridge.dsn_of("analytics"))
    service, command = Rig(server_store), Rig(others)
    service.writer.write([event("first"), event("other", "org-b")])
    service.upkeep.settle()
    shown = service.shown().tokens_issued
    service.writer.write([event("second")])  # not recounted yet, and so not in any rollup
    erased: list[object] = []
    waits = threading.Event()

    def wait(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    command.removal._sleep = wait
    thread = threading.Thread(target=lambda: erased.append(command.removal.erase(TenantId("org-a"), None, NOW)))
    thread.start()
    assert waits.wait(30)
    assert not erased
    service.upkeep.settle()
    thread.join(60)
    assert [one.issued for one in erased if isinstance(one, Removed)] == [2]
    for rig in (service, command):
        rig.agree(Oracle([event("other", "org-b")]))
    assert service.shown().tokens_issued == [shown[0] + 1, shown[1]]
    assert verify(others).differences == []
    others.close()


def test_two_exporters_on_one_server_show_the_same_and_never_less(server_store: Connection, bridge: Bridge) -> None:
    bridge.reset()
    empty(server_store)
    others = Connection(bridge.dsn_of("analytics"))
    exporters = (Rig(server_store), Rig(others))
    seen: dict[str, int] = {}

    def both() -> None:
        shown = [dict(zip((f := rig.shown()).tenant_id, f.tokens_issued, strict=True)) for rig in exporters]
        assert shown[0] == shown[1]
        assert all(shown[0][tenant] >= count for tenant, count in seen.items())
        seen.update(shown[0])

    for step in range(4):
        writer = exporters[step % 2]
        writer.writer.write([event(f"{step}-{n}", ("org-a", "org-b")[n % 2]) for n in range(6)])
        both()
        writer.upkeep.settle()
        both()
    exporters[1].removal.erase(TenantId("org-a"), None, NOW)
    both()
    exporters[0].writer.write([event("late")])
    exporters[0].upkeep.settle()
    both()
    assert seen == {"org-a": 13, "org-b": 12}
    others.close()


def test_a_mutation_that_takes_longer_than_any_time_out_is_waited_for(server_store: Connection, bridge: Bridge) -> None:
    bridge.reset()
    empty(server_store)
    hasty = Connection(bridge.dsn_of("analytics"), insert_timeout=0)
    hasty._arguments["send_receive_timeout"] = 1
    rig = Rig(hasty)
    rig.writer.write([event("first"), event("other", "org-b")])
    rig.upkeep.settle()
    server_store.command("SYSTEM STOP MERGES events")  # mutations are done by the same threads
    polled = threading.Event()
    waited = 0.0

    def wait(seconds: float) -> None:
        nonlocal waited
        waited += seconds
        time.sleep(seconds)
        if waited > 3:
            polled.set()

    rig.removal._sleep = wait
    thread = threading.Thread(target=rig.removal.erase, args=(TenantId("org-a"), None, NOW))
    thread.start()
    assert polled.wait(30)
    assert thread.is_alive()
    server_store.command("SYSTEM START MERGES events")
    thread.join(60)
    assert not thread.is_alive()
    rig.agree(Oracle([event("other", "org-b")]))
    assert rig.removal.resume() == 0
    assert verify(server_store).differences == []
    hasty.close()


def test_a_removal_that_another_process_withdrew_is_done_all_the_same(
    server_store: Connection, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one looked between the record and the deletion."""
    bridge.reset()
    empty(server_store)
    others = Connection(bridge.dsn_of("analytics"))
    rig, other = Rig(server_store), Rig(others)
    rig.writer.write([event("first"), event("second")])
    rig.upkeep.settle()
    shown = rig.shown().tokens_issued
    begin = rig.removal._mutate

    def withdrawn(table: str, *arguments: Any) -> None:
        if table == "events":
            assert other.removal.resume() == 1
        begin(table, *arguments)

    monkeypatch.setattr(rig.removal, "_mutate", withdrawn)
    assert rig.removal.erase(TenantId("org-a"), None, NOW) is not None
    assert rig.shown().tokens_issued == shown
    assert other.removal.resume() == 0
    assert verify(others).differences == []
    others.close()


def test_the_wrong_password_is_a_setting_and_is_not_repeated(bridge: Bridge) -> None:
    dsn = bridge.dsn.replace(":secret@", ":a-wrong-password@")
    with pytest.raises(StoreSetupError) as raised:
        Connection(dsn)
    assert "a-wrong-password" not in str(raised.value)
    assert "--dsn" in str(raised.value)


def test_a_server_without_the_schema_is_not_ready(tmp_path: Path) -> None:
    with Bridge(tmp_path) as bridge:
        connection = Connection(bridge.dsn)
        with pytest.raises(StoreError):
            schema.check(connection)
        schema.migrate(connection)
        schema.check(connection)
        connection.close()


def test_a_migration_interrupted_after_any_statement_is_finished_by_the_next(tmp_path: Path) -> None:
    statements = [statement for migration in schema.migrations() for statement in migration.statements]
    with Bridge(tmp_path) as bridge:
        for done in range(len(statements)):
            connection = Connection(bridge.dsn_of(f"interrupted_{done}"))
            for statement in statements[:done]:
                connection.command(statement)
            assert schema.migrate(connection)
            schema.check(connection)
            assert schema.migrate(connection) == []
            connection.close()


def test_the_engine_parses_the_schema_of_a_cluster(server_store: Connection) -> None:
    for migration in schema.migrations():
        for statement in migration.statements:
            made = schema.ddl(statement, schema.Replica(2, "ch-2b's"))
            if not statement.startswith("CREATE TABLE"):  # a change, which replicas have from each other, or data
                assert made == statement
                continue
            formatted = server_store.rows("SELECT formatQuery({ddl:String})", {"ddl": made})[0][0]
            path = re.search(r"Replicated\w*MergeTree\('([^']*)', 'ch-2b\\'s'(, \w+)?\)", formatted)
            assert path is not None, formatted
            assert path[1].startswith("/clickhouse/agentidp_analytics/{database}/2/")
            assert "min_compressed_bytes_to_fsync_after_fetch = 1" in formatted
