"""The three answers against the naive count: any events, in any order and batch, dirty or rolled up, at any now."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from freezegun import freeze_time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clickhouse.connection import Connection
from clickhouse.event import Event, parse_event
from tests.conftest import empty
from tests.support.oracle import Oracle
from tests.support.rig import Rig

TENANTS = ("a", "A", "a.", "org-1", "org-10", "0", "x" * 128, "NULL", "_:-.".replace("_", "z"))
AGENTS = ("agent", "Agent", "' OR 1=1 --", "🤖", "a" * 256, "%s{}", "\\", '"; DROP TABLE events', " ", "NULL")
NOWS = (
    datetime(2024, 2, 29, 23, 59, 59, 999_000, tzinfo=UTC),  # leap day
    datetime(2024, 3, 1, 0, 0, tzinfo=UTC),
    datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC),
    datetime(2026, 1, 1, 0, 0, 0, tzinfo=UTC),
    datetime(2026, 3, 31, 12, 0, tzinfo=UTC),
    datetime(2026, 11, 23, 9, 15, tzinfo=UTC),
)
OFFSETS = ("Z", "+14:00", "-12:00", "+05:45", "-00:00")


@st.composite
def moments(draw: st.DrawFn, now: datetime) -> str:
    """An RFC 3339 text near a boundary that has broken counters before, in some offset."""
    anchor = draw(
        st.sampled_from(
            [
                now,
                datetime(now.year, now.month, 1, tzinfo=UTC),
                datetime(now.year, 1, 1, tzinfo=UTC),
                datetime(2024, 2, 29, tzinfo=UTC),
                now - timedelta(days=89),
                now - timedelta(days=90),
                datetime(now.year, now.month, now.day, tzinfo=UTC),
            ]
        )
    )
    shift = draw(st.sampled_from([0, 1, -1, 999, -999, 900_000, -900_000, 86_400_000, -86_400_000, 3_599_999]))
    moment = min(anchor + timedelta(milliseconds=shift), now)
    offset = draw(st.sampled_from(OFFSETS))
    local = moment
    if offset != "Z":
        sign = 1 if offset[0] == "+" else -1
        local = moment + sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[4:6]))
    return local.strftime("%Y-%m-%dT%H:%M:%S.") + f"{local.microsecond // 1000:03d}" + offset


@st.composite
def histories(draw: st.DrawFn) -> tuple[datetime, list[list[Event]]]:
    now = draw(st.sampled_from(NOWS))
    tenants = draw(st.lists(st.sampled_from(TENANTS), min_size=1, max_size=3, unique=True))
    event = st.fixed_dictionaries(
        {
            "event_id": st.sampled_from([f"e{number}" for number in range(12)]) | st.text(min_size=1, max_size=8),
            "tenant_id": st.sampled_from(tenants),
            "agent_id": st.sampled_from(AGENTS),
            "issued_at": moments(now),
            "outcome": st.sampled_from(["success", "success", "success", "failure"]),
        }
    ).map(lambda value: parse_event(value, int(now.timestamp() * 1000)))
    batch = st.lists(event, min_size=1, max_size=12)
    batches = draw(st.lists(batch, min_size=1, max_size=4))
    resent = draw(st.lists(st.sampled_from([event for batch in batches for event in batch]), max_size=8))
    return now, [*batches, *([resent] if resent else [])]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories(), st.lists(st.booleans(), min_size=5, max_size=5), st.integers(1, 90))
def test_the_answers_equal_the_naive_count(
    embedded_store: Connection, history: tuple[datetime, list[list[Event]]], settled: list[bool], span: int
) -> None:
    _check(embedded_store, history, settled, span)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories(), st.lists(st.booleans(), min_size=5, max_size=5), st.integers(1, 90))
def test_the_answers_of_a_server_equal_the_naive_count(
    server_store: Connection, history: tuple[datetime, list[list[Event]]], settled: list[bool], span: int
) -> None:
    _check(server_store, history, settled, span)


def _check(connection: Connection, history: tuple[datetime, list[list[Event]]], settled: list[bool], span: int) -> None:
    now, batches = history
    with freeze_time(now):
        _check_at(now, Rig(empty(connection), clock=time.time), batches, settled, span)


def _check_at(now: datetime, rig: Rig, batches: list[list[Event]], settled: list[bool], span: int) -> None:
    oracle = Oracle()
    for batch, settle in zip(batches, settled, strict=False):
        rig.writer.write(batch)
        oracle.add(batch)
        if settle:
            rig.upkeep.settle()
    rig.agree(oracle, now, [span])
    rig.upkeep.settle()
    rig.agree(oracle, now)
    fleet = rig.shown()
    assert fleet.tenant_id == oracle.tenants()
    assert fleet.tokens_issued == [oracle.total(tenant) for tenant in fleet.tenant_id]
    assert fleet.token_failures == [oracle.failures(tenant) for tenant in fleet.tenant_id]
    assert fleet.month_tokens == [
        sum(count for _, count in oracle.agents(tenant, now.date())) for tenant in fleet.tenant_id
    ]
