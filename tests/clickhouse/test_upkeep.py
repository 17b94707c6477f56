"""Marks, recompute, repair, audit, retention and erasure on a real store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from clickhouse.audit import verify
from clickhouse.connection import Connection
from clickhouse.counters_file import CountersFile
from clickhouse.errors import StoreError, StoreSetupError, StoreUnavailableError
from clickhouse.event import Event
from clickhouse.fleet import Fleet
from clickhouse.marks import ORPHAN_AFTER_SECONDS
from clickhouse.open_store import open_store
from clickhouse.removal import Removed
from clickhouse.rollups import Recompute, Rollups
from clickhouse.tenant import TenantId
from clickhouse.totals import Totals
from tests.conftest import empty
from tests.support.oracle import Oracle
from tests.support.rig import NOW, Rig
from tests.support.service import wait_for

A, B = "org-a", "org-b"


def event(
    number: int, tenant: str = A, agent: str = "agent-1", *, hours_ago: float = 1, outcome: str = "success"
) -> Event:
    at = NOW - timedelta(hours=hours_ago)
    return Event(tenant, int(at.timestamp() * 1000), f"event-{number}", agent, outcome)


def spread(count: int, tenant: str = A, agents: int = 3) -> list[Event]:
    """Events over the last 40 days, one every few hours."""
    return [event(number, tenant, f"agent-{number % agents}", hours_ago=1 + number * 7) for number in range(count)]


def test_duplicates_change_nothing_and_are_counted(connection: Connection) -> None:
    rig = Rig(connection)
    events = spread(50)
    rig.writer.write([*events, *events])
    rig.upkeep.settle()
    rig.writer.write(list(reversed(events)))
    rig.agree(Oracle(events))
    rig.upkeep.settle()
    rig.agree(Oracle(events))
    assert rig.value("agentidp_analytics_duplicates_found_total") == 100
    assert rig.shown().tokens_issued == [50]


def test_an_identity_with_two_contents_counts_once_in_every_answer(connection: Connection) -> None:
    rig = Rig(connection)
    events = [
        event(1, agent="beta"),
        event(1, agent="alpha"),
        event(2, outcome="failure"),
        event(2, outcome="success"),
        event(3, agent="gamma", outcome="success"),
        event(3, agent="alpha", outcome="failure"),
    ]
    for one in events:
        rig.writer.write([one])
        rig.upkeep.settle()
    rig.agree(Oracle(events))
    assert rig.asked.agents(TenantId(A), NOW.date()) == [("agent-1", 1), ("alpha", 1), ("gamma", 1)]
    connection.command("OPTIMIZE TABLE events FINAL")
    connection.command("OPTIMIZE TABLE agent_slot FINAL")
    rig.agree(Oracle(events))
    report = verify(connection)
    assert report.differences == []
    assert [(conflict.event_id, conflict.agents, conflict.outcomes) for conflict in report.conflicts] == [
        ("event-1", 2, 1),
        ("event-2", 1, 2),
        ("event-3", 2, 2),
    ]


def test_an_id_with_two_times_is_two_events_and_a_conflict(connection: Connection) -> None:
    rig = Rig(connection)
    events = [event(1, hours_ago=1), event(1, hours_ago=2)]
    rig.writer.write(events)
    rig.agree(Oracle(events))
    rig.upkeep.settle()
    assert rig.asked.trend(TenantId(A), NOW.date(), 1) == [(NOW.date(), 2)]
    assert [conflict.times for conflict in verify(connection).conflicts] == [2]


def test_a_crash_before_the_recompute_is_repaired_by_the_next_process(connection: Connection) -> None:
    events = spread(100)
    crashed = Rig(connection)
    crashed.writer.write(events)
    # A server's segments may belong to a process that lives; only their age tells that it does not.
    later = NOW + timedelta(seconds=0 if connection.embedded else ORPHAN_AFTER_SECONDS + 1)
    assert connection.embedded or Rig(connection).upkeep.repair() is None
    restarted = Rig(connection, clock=later.timestamp)
    restarted.agree(Oracle(events))
    done = restarted.upkeep.repair()
    assert done is not None
    assert done.gained == 100
    assert restarted.upkeep.repair() is None
    restarted.agree(Oracle(events))


def test_marks_are_durable_before_the_events(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    insert = connection.insert

    def record(table: str, *arguments: object) -> None:
        order.append(table)
        insert(table, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "insert", record)
    rig = Rig(connection)
    rig.writer.write([event(1)])
    rig.writer.write([event(2)])  # the same slot: its mark still stands
    assert order == ["marks", "events", "events"]


def test_closed_marks_are_forgotten_by_merges(connection: Connection) -> None:
    rig = Rig(connection)
    for number in range(3):
        rig.writer.write([event(number)])
        rig.upkeep.settle()
    assert connection.rows("SELECT sum(open) FROM marks") == [(0,)]
    connection.command("OPTIMIZE TABLE marks FINAL")
    assert connection.rows("SELECT count() FROM marks") == [(0,)]
    rig.agree(Oracle(event(number) for number in range(3)))


def test_marks_closed_twice_are_recounted_once_more(connection: Connection) -> None:
    """Two processes take over what a third has left, at the same moment."""
    rig = Rig(connection)
    rig.writer.write([event(1)])
    (segment,) = rig.segments.own_ids()
    marks = connection.rows("SELECT tenant_id, toUnixTimestamp(slot), segment, -open FROM marks")
    rig.upkeep.settle()
    connection.insert("marks", ("tenant_id", "slot", "segment", "open"), list(zip(*marks, strict=True)))
    connection.command("OPTIMIZE TABLE marks FINAL")
    assert connection.rows("SELECT segment, open FROM marks") == [(segment, -1)]
    rig.agree(Oracle([event(1)]))
    later = NOW + timedelta(seconds=ORPHAN_AFTER_SECONDS + 1)
    other = Rig(connection, clock=later.timestamp)
    assert other.upkeep.repair() is not None
    assert other.open_marks() == 0
    other.agree(Oracle([event(1)]))


def test_a_crash_among_the_closing_rows_leaves_the_rest_open(connection: Connection) -> None:
    crashed = Rig(connection)
    events = [event(number, hours_ago=number) for number in range(4)]
    crashed.writer.write(events)
    marks = connection.rows("SELECT tenant_id, toUnixTimestamp(slot), segment, -open FROM marks ORDER BY slot")
    crashed.upkeep.settle()
    connection.command("TRUNCATE TABLE marks")
    opened = [(*mark[:3], 1) for mark in marks]
    for some in (opened, marks[:2]):  # all were written, two of them closed
        connection.insert("marks", ("tenant_id", "slot", "segment", "open"), list(zip(*some, strict=True)))
    later = NOW + timedelta(seconds=ORPHAN_AFTER_SECONDS + 1)
    restarted = Rig(connection, clock=later.timestamp)
    assert restarted.open_marks() == 2
    restarted.agree(Oracle(events))
    assert restarted.upkeep.repair() is not None
    assert restarted.open_marks() == 0
    restarted.agree(Oracle(events))


def test_a_mark_that_was_written_twice_is_closed_once(connection: Connection) -> None:
    """The first insert got no answer and landed all the same."""
    rig = Rig(connection)
    rig.writer.write([event(1)])
    marks = connection.rows("SELECT tenant_id, toUnixTimestamp(slot), segment, open FROM marks")
    connection.insert("marks", ("tenant_id", "slot", "segment", "open"), list(zip(*marks, strict=True)))
    rig.upkeep.settle()
    assert rig.open_marks() == 0


def test_a_mark_that_lands_after_its_segment_was_closed_is_open_until_it_is_repaired(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write([event(1)])
    marks = connection.rows("SELECT tenant_id, toUnixTimestamp(slot), segment, open FROM marks")
    rig.upkeep.settle()
    connection.insert("marks", ("tenant_id", "slot", "segment", "open"), list(zip(*marks, strict=True)))
    assert rig.open_marks() == 1
    rig.agree(Oracle([event(1)]))
    later = NOW + timedelta(seconds=ORPHAN_AFTER_SECONDS + 1)
    Rig(connection, clock=later.timestamp).upkeep.repair()
    assert rig.open_marks() == 0


def test_an_insert_of_unknown_outcome_keeps_its_marks(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(connection)
    insert = connection.insert

    def fail_after(table: str, *arguments: object) -> None:
        insert(table, *arguments)  # type: ignore[arg-type]
        if table == "events":
            raise StoreUnavailableError("the answer was lost")

    monkeypatch.setattr(connection, "insert", fail_after)
    with pytest.raises(StoreUnavailableError):
        rig.writer.write([event(1)])
    monkeypatch.undo()
    rig.upkeep.settle()
    assert len(rig.segments.own_ids()) == 1, "the segment must stay open while the insert may still land"
    rig.agree(Oracle([event(1)]))


def test_the_thread_settles_by_itself(connection: Connection) -> None:
    rig = Rig(connection)
    rig.upkeep.start()
    try:
        rig.writer.write(spread(20))
        deadline = threading.Event()
        for _ in range(200):
            if rig.shown().tokens_issued == [20]:
                break
            deadline.wait(0.05)
        assert rig.shown().tokens_issued == [20]
    finally:
        rig.upkeep.stop()
    rig.agree(Oracle(spread(20)))


def failing(monkeypatch: pytest.MonkeyPatch, rig: Rig, errors: list[BaseException]) -> None:
    """The next recomputes of the rig end with these errors, at a quick pace."""
    monkeypatch.setattr("clickhouse.upkeep._RETRY_SECONDS", 0.01)
    monkeypatch.setattr("clickhouse.upkeep._LONGEST_PAUSE_SECONDS", 0.01)
    recompute = Rollups.recompute

    def fail(rollups: Rollups, *arguments: Any, **options: Any) -> Recompute:
        if errors:
            raise errors.pop(0)
        return recompute(rollups, *arguments, **options)

    monkeypatch.setattr(Rollups, "recompute", fail)


def test_the_thread_outlives_every_error_and_tells_each_once(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(connection)
    unexpected = [RuntimeError("an engine's own")] * 5
    failing(monkeypatch, rig, [*unexpected, StoreUnavailableError("disk full"), StoreUnavailableError("disk full")])
    with caplog.at_level("INFO", "clickhouse.upkeep"):
        rig.upkeep.start()
        try:
            rig.writer.write(spread(20))
            wait_for(lambda: rig.shown().tokens_issued == [20], 30, lambda: caplog.text)
            wait_for(lambda: "works again" in caplog.text, 30)
        finally:
            rig.upkeep.stop()
    assert rig.value("agentidp_analytics_recompute_failures_total") == 7
    told = [(record.levelname, record.message.rpartition(": ")[2]) for record in caplog.records]
    assert told == [("ERROR", "an engine's own"), ("WARNING", "disk full"), ("INFO", "recompute works again")]
    rig.upkeep.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_makes_the_process_unready(server_store: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    empty(server_store)
    store = open_store(server_store.dsn, None, CollectorRegistry())
    store.check()
    failing(monkeypatch, Rig(server_store), [SystemExit()])
    store.upkeep.start()
    store.writer.write(spread(1))
    assert store.upkeep._thread is not None
    store.upkeep._thread.join(30)
    with pytest.raises(StoreUnavailableError, match="upkeep thread"):
        store.check()
    store.upkeep.stop()


def test_events_that_wait_for_long_make_the_process_unready(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(1))
    rig.upkeep.check()
    monkeypatch.setattr("clickhouse.upkeep._STUCK_SECONDS", 0.0)
    with pytest.raises(StoreUnavailableError, match="recount"):
        rig.upkeep.check()
    with rig.upkeep.paused():
        rig.upkeep.check()  # a removal may take its time
    rig.upkeep.settle()
    rig.upkeep.check()


def test_many_writers_a_recompute_and_readers_at_once(connection: Connection) -> None:
    rig = Rig(connection)
    batches = [
        [event(number * 100 + i, tenant, f"agent-{number}", hours_ago=i / 10) for i in range(30)]
        for number in range(12)
        for tenant in (A, B)
    ]
    done = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    def write(part: int) -> None:
        for batch in batches[part::4]:
            rig.writer.write(batch)
            answered = {one.event_id for one in batch}
            total = sum(count for _, count in rig.asked.trend(TenantId(batch[0].tenant_id), NOW.date(), 90))
            assert total >= len(answered)

    def settle() -> None:
        while not done.is_set():
            rig.upkeep.settle()

    writers = [threading.Thread(target=guarded, args=(lambda part=part: write(part),)) for part in range(4)]
    recomputer = threading.Thread(target=guarded, args=(settle,))
    for thread in (recomputer, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    recomputer.join()
    assert failures == []
    oracle = Oracle(one for batch in batches for one in batch)
    rig.agree(oracle)
    rig.upkeep.settle()
    rig.agree(oracle)
    assert verify(connection).differences == []


@dataclass(frozen=True)
class Damage:
    table: str
    statement: str


DAMAGES = [
    Damage(
        "agent_slot",
        "INSERT INTO agent_slot SELECT * REPLACE (issued + 1 AS issued, generation + 1 AS generation) "
        "FROM agent_slot FINAL LIMIT 1",
    ),
    Damage(
        "tenant_slot",
        "INSERT INTO tenant_slot SELECT * REPLACE (0 AS issued, generation + 1 AS generation) "
        "FROM tenant_slot FINAL LIMIT 1",
    ),
    Damage("agent_day", "ALTER TABLE agent_day DELETE WHERE agent_id = 'agent-1'"),
    Damage(
        "tenant_day",
        "INSERT INTO tenant_day SELECT * REPLACE (failed + 5 AS failed, generation + 1 AS generation) "
        "FROM tenant_day FINAL LIMIT 1",
    ),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.table)
def test_verify_finds_a_rollup_damaged_on_purpose(connection: Connection, damage: Damage) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(60) + spread(30, B))
    rig.upkeep.settle()
    assert verify(connection).differences == []
    connection.command(damage.statement, mutations_sync=2)
    found = verify(connection).differences
    assert damage.table in {entry.table for entry in found}
    assert all(entry.wanted != entry.found for entry in found)


def test_verify_finds_two_errors_that_cancel_out_in_the_sum(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write([event(1, agent="one"), event(2, agent="two")])
    rig.upkeep.settle()
    connection.command(
        "INSERT INTO agent_slot SELECT * REPLACE (if(agent_id = 'one', 2, 0) AS issued, generation + 1 AS generation) "
        "FROM agent_slot FINAL"
    )
    assert {entry.table for entry in verify(connection).differences} == {"agent_slot", "agent_day"}


def test_verify_of_a_range_leaves_the_other_days_alone(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(60))
    rig.upkeep.settle()
    connection.command("ALTER TABLE tenant_day DELETE WHERE day = '2026-11-20'", mutations_sync=2)
    assert [entry.day for entry in verify(connection, date(2026, 11, 20), date(2026, 11, 20)).differences] == [
        date(2026, 11, 20)
    ]
    assert verify(connection, date(2026, 11, 21), date(2026, 11, 23)).differences == []


def test_verify_finds_a_counter_above_what_can_be_counted(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(10))
    rig.upkeep.settle()
    rig.shown()
    connection.insert("counters", ["tenant_id", "issued", "failed", "published"], [[A], [11], [0], [1]])
    assert [entry.table for entry in verify(connection).differences] == ["exporter counter"]


def test_retention_removes_old_days_and_no_counter_falls(connection: Connection) -> None:
    rig = Rig(connection)
    events = spread(200)
    rig.writer.write(events)
    rig.upkeep.settle()
    before = rig.shown()
    rig.removal.retain(30, NOW)
    kept = [one for one in events if one.issued_at >= datetime(2026, 10, 25, tzinfo=UTC).timestamp() * 1000]
    assert 0 < len(kept) < len(events)
    rig.agree(Oracle(kept))
    assert rig.shown().tokens_issued == before.tokens_issued
    rig.writer.write([event(9999)])
    rig.upkeep.settle()
    assert rig.shown().tokens_issued == [before.tokens_issued[0] + 1]
    assert connection.rows("SELECT count() FROM events WHERE issued_at < '2026-10-25'") == [(0,)]
    assert verify(connection).differences == []


def late(number: int) -> Event:
    """An event older than any retention below, with an id of its own."""
    return event(10_000 + number, hours_ago=35 * 24 + number)


def fail_at(monkeypatch: pytest.MonkeyPatch, connection: Connection, number: int) -> None:
    """The connection's writing statement of this number, from 1, fails instead of running."""
    calls = 0

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any, **options: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                raise StoreError("failed here")
            call(*arguments, **options)

        return run

    for name in ("command", "insert"):
        monkeypatch.setattr(connection, name, counted(getattr(connection, name)))


@pytest.mark.parametrize("fails_at", range(1, 12))
def test_retention_that_fails_anywhere_loses_and_doubles_nothing(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(200))
    rig.upkeep.settle()
    shown = [rig.shown().tokens_issued[0]]
    fail_at(monkeypatch, connection, fails_at)
    with contextlib.suppress(StoreError):
        rig.removal.retain(30, NOW)
    monkeypatch.undo()
    shown += rig.shown().tokens_issued
    rig.writer.write([late(1), late(2)])  # the process lives on, and so do its senders
    rig.upkeep.settle()
    shown += rig.shown().tokens_issued
    tomorrow = NOW + timedelta(days=1)
    rig.removal.retain(30, tomorrow)
    shown += rig.shown().tokens_issued
    restarted = Rig(connection, clock=tomorrow.timestamp)
    restarted.writer.write([event(9_999)])
    restarted.upkeep.settle()
    shown += restarted.shown().tokens_issued
    assert shown == sorted(shown)
    assert shown[-2:] == [202, 203]
    kept = [one for one in spread(200) if one.issued_at >= datetime(2026, 10, 26, tzinfo=UTC).timestamp() * 1000]
    restarted.agree(Oracle([*kept, event(9_999)]), tomorrow)
    assert restarted.removal.resume() == 0
    assert verify(connection).differences == []


def test_late_events_that_come_while_retention_runs_are_counted(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(200))
    rig.upkeep.settle()
    writers: list[threading.Thread] = []
    command, insert = connection.command, connection.insert

    def write_beside() -> None:
        number = len(writers)
        writers.append(threading.Thread(target=rig.writer.write, args=([late(number)],)))
        writers[-1].start()

    def insert_and_write(table: str, *arguments: Any) -> None:
        if table == "removals":
            write_beside()  # between the count and the deletion: it has to wait
        insert(table, *arguments)

    def write_and_command(statement: str, *arguments: Any, **settings: Any) -> None:
        if "DELETE WHERE" in statement and "events" not in statement:
            write_beside()
            writers[-1].join()  # after the events were deleted, before their rollups are
        command(statement, *arguments, **settings)

    monkeypatch.setattr(connection, "insert", insert_and_write)
    monkeypatch.setattr(connection, "command", write_and_command)
    rig.removal.retain(30, NOW)
    monkeypatch.undo()
    for writer in writers:
        writer.join()
    came = len(writers)
    assert came >= 5
    rig.upkeep.settle()
    assert rig.shown().tokens_issued == [200 + came]
    assert verify(connection).differences == []
    for _ in range(2):  # the same day again: what came is removed, and its number added to what was removed before
        rig.removal.retain(30, NOW)
        assert connection.rows("SELECT count() FROM events WHERE issued_at < '2026-10-25'") == [(0,)]
        assert rig.shown().tokens_issued == [200 + came]
    rig.writer.write([event(9_999)])
    rig.upkeep.settle()
    assert rig.shown().tokens_issued == [201 + came]
    assert verify(connection).differences == []


def test_a_removal_waits_for_an_insert_of_unknown_outcome(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(200))
    insert = connection.insert

    def lose_the_answer(table: str, *arguments: Any) -> None:
        insert(table, *arguments)
        raise StoreUnavailableError("the answer was lost")

    monkeypatch.setattr(connection, "insert", lose_the_answer)
    with pytest.raises(StoreUnavailableError):
        rig.writer.write([late(1)])
    monkeypatch.undo()
    with pytest.raises(StoreUnavailableError, match="may still land"):
        rig.removal.retain(30, NOW)
    rig.writer.write([event(1)])  # nobody waits for ever
    assert connection.rows("SELECT count() FROM removals") == [(0,)]


def test_the_daily_round_ends_an_interrupted_erasure_without_any_retention(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(connection)
    rig.writer.write([*spread(30), *spread(20, B)])
    record = rig.removal._record

    def fail_at_the_end(removed: Sequence[Removed], done: int) -> None:
        if done:
            raise StoreError("failed here")
        record(removed, done)

    monkeypatch.setattr(rig.removal, "_record", fail_at_the_end)
    with pytest.raises(StoreError, match="failed here"):
        rig.removal.erase(TenantId(A), None, NOW)
    monkeypatch.undo()
    rig.daily(retention_days=None).run()
    assert rig.removal.resume() == 0
    rig.agree(Oracle(spread(20, B)))
    assert verify(connection).differences == []


def test_erasing_what_is_not_there_changes_nothing(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(30))
    assert rig.removal.erase(TenantId(B), None, NOW) is None
    assert rig.removal.erase(TenantId(A), "nobody", NOW) is None
    previewed = rig.removal.preview(TenantId(A), "agent-1")
    assert previewed is not None
    assert (previewed.issued, previewed.failed) == (10, 0)
    rig.agree(Oracle(spread(30)))
    assert connection.rows("SELECT count() FROM removals") == [(0,)]


def test_a_name_left_by_an_erasure_that_was_killed_at_its_end_is_forgotten(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(30))
    rig.removal._forget_name = lambda removal_id: None  # type: ignore[method-assign]
    rig.removal.erase(TenantId(A), "agent-1", NOW)
    assert connection.rows("SELECT count() FROM removals WHERE agent_id = 'agent-1'") != [(0,)]
    assert Rig(connection).removal.resume() == 0
    assert connection.rows("SELECT count() FROM removals WHERE agent_id = 'agent-1'") == [(0,)]


def test_erasing_an_agent_removes_its_rows_and_holds_the_counter(connection: Connection) -> None:
    rig = Rig(connection)
    events = [*spread(30), event(1, agent="other", hours_ago=8), *spread(20, B)]
    rig.writer.write(events)
    rig.upkeep.settle()
    before = rig.shown().tokens_issued
    rig.removal.erase(TenantId(A), "agent-1", NOW)
    kept = [one for one in events if (one.tenant_id, one.agent_id) != (A, "agent-1")]
    rig.agree(Oracle(kept))
    assert rig.shown().tokens_issued == before
    for table in ("events", "agent_slot", "agent_day"):
        assert connection.rows(f"SELECT count() FROM {table} WHERE agent_id = 'agent-1' AND tenant_id = 'org-a'") == [
            (0,)
        ]
    assert connection.rows("SELECT count() FROM removals WHERE agent_id != ''") == [(0,)]
    rig.writer.write([event(5000)])
    rig.upkeep.settle()
    assert rig.shown().tokens_issued == [before[0] + 1, before[1]]
    assert verify(connection).differences == []


def test_erasing_a_tenant_leaves_the_others_and_its_counter_comes_back_no_lower(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write(spread(30) + spread(20, B))
    rig.upkeep.settle()
    rig.shown()
    rig.removal.erase(TenantId(A), None, NOW)
    rig.agree(Oracle(spread(20, B)))
    for table in ("events", "marks", "agent_slot", "tenant_slot", "agent_day", "tenant_day"):
        assert connection.rows(f"SELECT count() FROM {table} WHERE tenant_id = 'org-a'") == [(0,)], table
    assert dict(zip(rig.shown().tenant_id, rig.shown().present, strict=True)) == {A: False, B: True}
    rig.writer.write([event(7777)])
    rig.upkeep.settle()
    fleet = rig.shown()
    assert dict(zip(fleet.tenant_id, fleet.tokens_issued, strict=True)) == {A: 31, B: 20}


@pytest.mark.parametrize("crash_at", range(1, 12))
def test_an_erasure_interrupted_anywhere_is_finished_or_withdrawn_by_the_next_start(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    rig = Rig(connection)
    events = spread(30) + spread(20, B)
    rig.writer.write(events)
    rig.upkeep.settle()
    before = rig.shown().tokens_issued
    fail_at(monkeypatch, connection, crash_at)
    interrupted = True
    try:
        rig.removal.erase(TenantId(A), "agent-1", NOW)
        interrupted = False
    except StoreError:
        pass
    monkeypatch.undo()
    pending = connection.rows("SELECT 1 FROM removals GROUP BY tenant_id, removal_id HAVING max(done) = 0")
    # Late enough to take over what the dead process of a server has left, and to forget a name.
    restarted = Rig(connection, clock=(NOW + timedelta(hours=2)).timestamp)
    resumed = restarted.removal.resume()
    restarted.upkeep.repair()
    if interrupted and crash_at <= 2:  # the engine was not told to delete anything yet
        restarted.agree(Oracle(events))
        assert restarted.removal.erase(TenantId(A), "agent-1", NOW) is not None
    assert resumed == (1 if interrupted and crash_at > 1 and pending else 0)
    restarted.removal.resume()
    assert connection.rows("SELECT count() FROM removals WHERE agent_id != ''") == [(0,)]
    restarted.agree(Oracle(one for one in events if (one.tenant_id, one.agent_id) != (A, "agent-1")))
    assert restarted.shown().tokens_issued == before
    assert verify(connection).differences == []


def shown(connection: Connection, file: Path) -> Fleet:
    """What an exporter that was just started would show, and then all of it as published."""
    totals = Totals(connection, clock=NOW.timestamp, counters_file=CountersFile(file))
    fleet = totals.read()
    totals.record(fleet, newly_published=fleet.tenant_id, other=fleet.other or (7, 1))
    return fleet


def test_a_restored_store_lowers_no_counter_and_no_tenant_is_new_again(connection: Connection, tmp_path: Path) -> None:
    file = tmp_path / "store.counters.json"
    rig = Rig(connection)
    rig.writer.write(spread(50))
    rig.upkeep.settle()
    fleet = shown(connection, file)
    assert (fleet.tokens_issued, fleet.published, fleet.other) == ([50], [False], None)
    fleet = shown(connection, file)
    assert (fleet.tokens_issued, fleet.published, fleet.other) == ([50], [True], (7, 1))
    empty(connection)  # an older copy of the store, or one made from an export, with less in it and without this memory
    restored = Rig(connection)
    restored.writer.write([*spread(20), *spread(5, B)])
    restored.upkeep.settle()
    fleet = shown(connection, file)
    assert (fleet.tenant_id, fleet.tokens_issued, fleet.published) == ([A, B], [50, 5], [True, False])
    assert fleet.other == (7, 1)
    assert restored.asked.trend(TenantId(A), NOW.date(), 90) == Oracle(spread(20)).trend(A, NOW.date(), 90)
    assert [entry.table for entry in verify(connection).differences] == ["exporter counter"]


def test_a_tenant_that_was_recorded_but_never_published_stays_new(connection: Connection, tmp_path: Path) -> None:
    file = tmp_path / "store.counters.json"
    rig = Rig(connection)
    rig.writer.write(spread(50))
    rig.upkeep.settle()
    totals = Totals(connection, clock=NOW.timestamp, counters_file=CountersFile(file))
    totals.record(totals.read())
    assert Totals(connection, clock=NOW.timestamp, counters_file=CountersFile(file)).read().published == [False]


def test_an_unusable_counters_file_is_begun_anew_and_one_without_a_place_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "store.counters.json"
    file.write_text("{broken")
    assert CountersFile(file).counters == {}
    assert file.with_name("store.counters.json.damaged").read_text() == "{broken"
    CountersFile(file).raise_to({A: (3, 1)})
    CountersFile(file).raise_to({A: (2, 2)})
    assert CountersFile(file).counters == {A: (3, 2)}
    kept = CountersFile(file)
    (tmp_path / "store.counters.json.new").mkdir()  # in the way of the next writing
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="cannot be written"):
            kept.raise_to({A: (9, 9)})
        assert kept.counters == {A: (3, 2)}, "what is not on disk must not pass for it"
    unreadable = tmp_path / "other.counters.json"
    unreadable.symlink_to("/proc/self/mem")  # reading it fails with EIO: begun anew, counters would fall
    with pytest.raises(StoreSetupError, match="cannot be read"):
        CountersFile(unreadable)
    with pytest.raises(StoreSetupError, match="cannot be written") as refused:
        CountersFile(Path("/proc/store.counters.json"))
    assert "\n" not in str(refused.value)
    assert "chdb:///proc/store/store" in str(refused.value)


def test_the_same_retention_twice_at_once_adds_to_a_counter_once(connection: Connection) -> None:
    rigs = [Rig(connection), Rig(connection)]
    rigs[0].writer.write(spread(200))
    rigs[0].upkeep.settle()
    before = rigs[0].shown().tokens_issued
    removed = [rig.removal for rig in rigs]
    recorded = [removal._record for removal in removed]
    both = threading.Barrier(2, timeout=30)

    def wait_for_the_other(number: int, removed: Sequence[Removed], done: int) -> None:
        if done == 0:
            both.wait()
        recorded[number](removed, done)

    for number, removal in enumerate(removed):
        removal._record = partial(wait_for_the_other, number)  # type: ignore[method-assign]
    threads = [threading.Thread(target=removal.retain, args=(30, NOW)) for removal in removed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.insert("counters", ["tenant_id", "issued", "failed", "published"], [[A], [0], [0], [1]])
    assert rigs[0].shown().tokens_issued == before
    assert verify(connection).differences == []
