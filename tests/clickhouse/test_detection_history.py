"""The detector's history against a naive count: bins, hours, spreads, habits and norms; late events and erasure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clickhouse.audit import verify
from clickhouse.connection import Connection
from clickhouse.detection.history import History, hours_like
from clickhouse.detection.progress import Progress
from clickhouse.detection.statements import statement
from clickhouse.event import Event
from clickhouse.tenant import TenantId
from tests.conftest import empty
from tests.support.detection_oracle import (
    BIN,
    DAY,
    HOUR,
    Counted,
    HourOf,
    Silence,
    agent_norm,
    habit,
    is_weekend,
    spreads,
    tenant_norm,
)
from tests.support.rig import Rig

NOON = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp())
TENANTS = ("org-a", "org-b")
AGENTS = ("reader", "writer", 'it\'s "quoted" \\ 🤖')

HISTORY = {
    "agent_hour": "tenant_id, agent_id, toUnixTimestamp(hour), "
    "issued, failed, bins, top_1, second_3, sum_3, rest_6, rest_12",
    "tenant_hour": "tenant_id, toUnixTimestamp(hour), issued, filled, silent",
    "agent_waste": "tenant_id, agent_id, toUnixTimestamp(hour), wasted, most, most_at_once",
    "agent_spread": "tenant_id, agent_id, toUnixTimestamp(hour), bins_6h, bins_nights, tokens_nights, hours_nights",
}
NORMS = ("agent_habit", "agent_norm", "tenant_norm")


@st.composite
def traces(draw: st.DrawFn, hours: int = 30) -> list[Event]:
    """Events of the hours before noon, at bin and hour borders above all, in bursts, some of them twice."""
    found = []
    for number in range(draw(st.integers(1, 25))):
        border = draw(st.integers(0, hours * 12)) * BIN
        shift = draw(st.sampled_from([0, 1, 299_999, 150_000, -1]))
        at = min((NOON - border) * 1000 + shift, NOON * 1000 - 1)
        found.append(
            Event(
                tenant_id=draw(st.sampled_from(TENANTS)),
                issued_at=at,
                event_id=draw(st.sampled_from([f"e{number}", "same"])),
                agent_id=draw(st.sampled_from(AGENTS)),
                outcome=draw(st.sampled_from(["success", "success", "success", "failure"])),
                scope=draw(st.sampled_from(["", "read"])),
                client_ip=draw(st.sampled_from(["", "10.0.0.1"])),
                expires_in=draw(st.sampled_from([0, 60, 900, 3600, 2**32 - 1])),
            )
        )
    again = draw(st.lists(st.sampled_from(found), max_size=5))
    others = [one._replace(agent_id=draw(st.sampled_from(AGENTS))) for one in again]
    return draw(st.permutations([*found, *again, *others]))


def history_of(connection: Connection, *, with_norms_since: int = NOON) -> History:
    """With norms of no hour before `with_norms_since`: hundreds that nobody looks at."""
    progress = Progress(connection)
    if "norms" not in progress.read():
        progress.write(norms=with_norms_since - HOUR)
    return History(connection, progress, recount_seconds=0)


def read(connection: Connection, table: str) -> dict[Any, Any]:
    """Rows of one of HISTORY by its key, those of zeros left out but for tenants'."""
    keys = 2 if table == "tenant_hour" else 3
    rows = connection.rows(f"SELECT {HISTORY[table]} FROM {table} FINAL")
    return {row[:keys]: row[keys:] for row in rows if keys == 2 or any(row[keys:])}


def write(rig: Rig, *batches: Sequence[Event]) -> None:
    for batch in batches:
        rig.writer.write(batch)
    rig.upkeep.settle()


def insert(connection: Connection, table: str, names: str, rows: Iterable[Sequence[Any]]) -> None:
    connection.insert(table, [*names.split(", "), "generation"], list(zip(*[(*row, 1) for row in rows], strict=True)))


# --- bins


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traces(), st.integers(1, 4))
def test_the_bins_of_a_slot_equal_the_naive_count(
    embedded_store: Connection, events: list[Event], batches: int
) -> None:
    rig = Rig(empty(embedded_store))
    for number in range(batches):
        write(rig, events[number::batches])
    rows = embedded_store.rows(
        "SELECT tenant_id, agent_id, toUnixTimestamp(slot), issued, failed, issued_5, issued_10 FROM agent_slot FINAL"
    )
    assert {row[:3]: row[3:] for row in rows if any(row[3:])} == Counted(events).slots()
    assert verify(embedded_store).differences == []


@pytest.mark.parametrize("column", ["issued_5", "issued_10"])
def test_verify_finds_a_false_bin(connection: Connection, column: str) -> None:
    rig = Rig(connection)
    at = NOON * 1000
    write(rig, [Event("org-a", at + 60_000 * minute, f"e{minute}", "reader") for minute in range(15)])
    assert verify(connection).differences == []
    connection.command(
        f"INSERT INTO agent_slot SELECT * REPLACE ({column} - 1 AS {column}, generation + 1 AS generation) "
        "FROM agent_slot FINAL"
    )
    assert [(one.table, one.wanted, one.found) for one in verify(connection).differences] == [
        ("agent_slot's bins", 10, 9)
    ]


# --- hours


def check_hours(connection: Connection, events: Iterable[Event], until: int = NOON) -> None:
    counted = Counted(events)
    hours = counted.agent_hours(until)
    since = min((hour for _, _, hour in hours), default=until)
    assert read(connection, "agent_hour") == hours
    assert read(connection, "tenant_hour") == counted.tenant_hours(since, until)
    assert read(connection, "agent_waste") == counted.agent_wastes(until)
    assert read(connection, "agent_spread") == spreads(hours, since, until)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traces())
def test_the_hours_equal_the_naive_count(embedded_store: Connection, events: list[Event]) -> None:
    write(Rig(empty(embedded_store)), events)
    history_of(embedded_store).bring_to(NOON, NOON + 300)
    check_hours(embedded_store, events)


def busy_days(seed: int, hours: int = 50) -> list[Event]:
    """Two tenants, three agents; a token each hour at least, so that every silence ends within two days."""
    rng = random.Random(seed)
    return [
        Event(
            rng.choice(TENANTS),
            (NOON - HOUR * ago) * 1000 + rng.randrange(HOUR * 1000),
            f"e{ago}-{number}",
            rng.choice(AGENTS),
            rng.choice(["success", "success", "success", "failure"]),
            client_ip=rng.choice(["10.0.0.1", "10.0.0.2"]),
            expires_in=rng.choice([60, 3600]),
        )
        for ago in range(1, hours + 1)
        for number in range(rng.randrange(1, 12))
    ]


def test_the_hours_of_busy_days_equal_the_naive_count(connection: Connection) -> None:
    events = busy_days(1)
    write(Rig(connection), events)
    history_of(connection).bring_to(NOON, NOON + 300)
    check_hours(connection, events)


@pytest.mark.parametrize("place", range(12))
def test_a_silence_is_as_long_as_the_time_since_the_last_bin_with_tokens(
    embedded_store: Connection, place: int
) -> None:
    """Bits of an hour's bins were shifted in eight bits once: bins from the ninth on saw those after them."""
    empty(embedded_store)
    hour = NOON - HOUR
    first = Event("org-a", (hour - HOUR) * 1000, "first", "reader")
    events = [first, Event("org-a", (hour + BIN * place) * 1000, "e", "reader")]
    write(Rig(embedded_store), events)
    history_of(embedded_store).bring_to(NOON, NOON + 300)
    assert read(embedded_store, "tenant_hour")["org-a", hour] == (
        1, 1 << place, max((12 + place - 1) * BIN, (11 - place) * BIN),
    )  # fmt: skip


# --- history made anew


def everything(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All of the history and what follows from it, without generations and rows of zeros."""
    found: dict[str, list[tuple[Any, ...]]] = {table: sorted(read(connection, table).items()) for table in HISTORY}
    for table in NORMS:
        found[table] = sorted(connection.rows(f"SELECT * EXCEPT (generation) FROM {table} FINAL"))
    found["agent_network"] = sorted(
        connection.rows(
            "SELECT tenant_id, agent_id, network, wide, min(first_seen), max(last_seen) FROM agent_network "
            "GROUP BY tenant_id, agent_id, network, wide"
        )
    )
    return found


def made_from_scratch(connection: Connection, hour: int) -> dict[str, list[tuple[Any, ...]]]:
    for table in (*HISTORY, *NORMS, "agent_network", "detection"):
        connection.command(f"TRUNCATE TABLE {table}")
    history_of(connection, with_norms_since=hour).bring_to(hour, hour + 300)
    return everything(connection)


def changed_content(events: list[Event]) -> list[Event]:
    """The same identities under a smaller agent id: they leave who had them."""
    return [one._replace(agent_id="a", outcome="success") for one in events[::7]]


CHANGES: dict[str, Callable[[Rig, list[Event]], object]] = {
    "an hour late": lambda rig, _: write(rig, [Event("org-a", (NOON - HOUR - 60) * 1000, "late", "reader")]),
    "a day late": lambda rig, _: write(
        rig, [Event("org-a", (NOON - DAY - 61 * number) * 1000, f"late{number}", "late") for number in range(90)]
    ),
    "in the first bin of an hour": lambda rig, _: write(
        rig, [Event("org-a", (NOON - DAY) * 1000 + number, f"late{number}", "writer") for number in range(50)]
    ),
    "duplicates": lambda rig, events: write(rig, events[::2], events[::3]),
    "another content": lambda rig, events: write(rig, changed_content(events)),
    "an agent erased": lambda rig, _: rig.removal.erase(TenantId("org-a"), "writer", datetime.fromtimestamp(NOON, UTC)),
    "a tenant erased": lambda rig, _: rig.removal.erase(TenantId("org-a"), None, datetime.fromtimestamp(NOON, UTC)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_late_ends_in_the_history_that_is_made_from_scratch(embedded_store: Connection, change: str) -> None:
    _check_change(empty(embedded_store), change)


def test_what_was_erased_on_a_server_is_in_no_history_that_is_made_anew(server_store: Connection) -> None:
    _check_change(empty(server_store), "an agent erased")


def _check_change(connection: Connection, change: str) -> None:
    rig = Rig(connection)
    events = busy_days(2, hours=36)
    write(rig, events)
    history_of(connection).bring_to(NOON, NOON + 300)
    CHANGES[change](rig, events)
    history_of(connection).bring_to(NOON + HOUR, NOON + HOUR + 300)
    check_hours(connection, _left(events, change) if "erased" in change else events_of(connection), NOON + HOUR)
    midnight = NOON + 12 * HOUR  # an agent's habits are made once a day
    history_of(connection).bring_to(midnight, midnight + 300)
    changed = everything(connection)
    scratch = made_from_scratch(connection, midnight)
    for table in ("agent_habit", "agent_norm", "tenant_norm"):  # rows of other hours and days may be left over
        changed[table] = [row for row in changed[table] if row in scratch[table]]
    assert changed == scratch


def events_of(connection: Connection) -> list[Event]:
    names = [name if name != "issued_at" else "toUnixTimestamp64Milli(issued_at)" for name in Event._fields]
    return [Event(*row) for row in connection.rows(f"SELECT {', '.join(names)} FROM events")]


def _left(events: list[Event], change: str) -> list[Event]:
    if change == "a tenant erased":
        return [one for one in events if one.tenant_id != "org-a"]
    return [one for one in events if (one.tenant_id, one.agent_id) != ("org-a", "writer")]


def test_what_retention_removes_is_in_none_of_the_history(connection: Connection) -> None:
    rig = Rig(connection, clock=lambda: float(NOON))
    long_ago = NOON - 4 * DAY
    old = [
        Event("org-a", (long_ago - HOUR * ago) * 1000, f"e{ago}", "gone", client_ip="10.0.0.1", expires_in=86_400)
        for ago in range(1, 40)
    ]
    write(rig, old)
    history_of(connection, with_norms_since=long_ago).bring_to(long_ago, long_ago + 300)
    tables = (*HISTORY, "agent_habit", "agent_norm", "agent_network")
    assert [table for table in tables if not _rows_of(connection, table)] == ["agent_waste"]
    rig.removal.retain(2, datetime.fromtimestamp(NOON, UTC))
    history_of(connection).bring_to(NOON, NOON + 300)
    assert [table for table in (*tables, "tenant_norm") if _rows_of(connection, table)] == []


def _rows_of(connection: Connection, table: str) -> int:
    return int(connection.rows(f"SELECT count() FROM {table} WHERE tenant_id = 'org-a'")[0][0])


def test_an_hour_is_made_once(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Rig(connection), busy_days(3, hours=5))
    history_of(connection).bring_to(NOON, NOON + 300)
    made = connection.rows("SELECT max(generation) FROM agent_hour")
    history_of(connection).bring_to(NOON, NOON + 300)
    history_of(connection).bring_to(NOON - HOUR, NOON - HOUR + 300)
    assert connection.rows("SELECT max(generation) FROM agent_hour") == made


# --- norms


def random_hours(seed: int, days: int, *, share: float = 0.4) -> dict[int, HourOf]:
    rng = random.Random(seed)
    return {
        NOON - HOUR * ago: HourOf(*(rng.randrange(30) for _ in range(8)))
        for ago in range(1, days * 24)
        if rng.random() < share
    }


@pytest.mark.parametrize("hour", [NOON // DAY * DAY + HOUR * of_day for of_day in (0, 12, 23)])
def test_habits_and_norms_of_agents_equal_the_naive_ones(connection: Connection, hour: int) -> None:
    day = hour // DAY * DAY
    agents = {
        "old": random_hours(1, 80),
        "young": random_hours(2, 9),
        "seldom": random_hours(3, 75, share=0.02),
        "once": {NOON - 40 * DAY: HourOf(5, 1, 2, 4, 1, 5, 1, 1)},
        "last month": {at: row for at, row in random_hours(4, 80).items() if at < day - 30 * DAY},
    }
    insert(
        connection,
        "agent_hour",
        "tenant_id, agent_id, hour, issued, failed, bins, top_1, second_3, sum_3, rest_6, rest_12",
        [("t", agent, at, *row) for agent, hours in agents.items() for at, row in hours.items()],
    )
    wastes = {NOON - ago * DAY: (9 * ago, 4 + ago % 3, 3 + ago % 2) for ago in range(2, 70)}
    insert(
        connection,
        "agent_waste",
        "tenant_id, agent_id, hour, wasted, most, most_at_once",
        [("t", "old", at, *row) for at, row in wastes.items()],
    )
    born = {agent: min(at // DAY for at, row in hours.items() if row.issued) for agent, hours in agents.items()}
    insert(
        connection,
        "agent_day",
        "tenant_id, agent_id, day, issued",
        [
            ("t", agent, date(1970, 1, 1) + timedelta(days=first + more), 1)
            for agent, first in born.items()
            for more in (0, 1)
        ],
    )
    connection.command(statement("agent_habits"), {"day": day, "generation": 1})
    habits = {row[2]: row[4:-1] for row in connection.rows("SELECT * FROM agent_habit FINAL ORDER BY agent_id")}
    assert habits.keys() == agents.keys()
    for agent, hours in agents.items():
        wanted = habit(hours, wastes if agent == "old" else {}, day, day // DAY - born[agent])
        assert habits[agent] == pytest.approx(wanted), agent
    dates = [day - ago * DAY + (hour + near) % DAY for ago in range(1, 61) for near in (-HOUR, 0, HOUR)]
    keys = {"day": day, "targets": [(hour - day) // HOUR], "sources": dates, "generation": 1}
    connection.command(statement("agent_norms"), keys)
    norms = {row[2]: row[4:-1] for row in connection.rows("SELECT * FROM agent_norm FINAL")}
    for agent, hours in agents.items():
        if any(at in hours for at in dates):
            assert norms.pop(agent) == pytest.approx(agent_norm(hours, hour, day // DAY - born[agent])), agent
    assert norms == {}


@pytest.mark.parametrize("hour", [NOON, NOON + DAY + 11 * HOUR, NOON + 2 * DAY, NOON + 3 * DAY - 12 * HOUR])
def test_norms_of_tenants_equal_the_naive_ones(connection: Connection, hour: int) -> None:
    rng = random.Random(5)
    tenants: dict[str, dict[int, Silence]] = {}
    for tenant, days, share in (("old", 80, 0.9), ("young", 12, 0.9), ("seldom", 80, 0.05)):
        tenants[tenant] = {
            hour - HOUR * ago: Silence(rng.randrange(1, 99), rng.randrange(1, 4096), rng.randrange(2_000))
            if rng.random() < share
            else Silence(0, 0, rng.randrange(90_000))
            for ago in range(1, days * 24)
        }
    tenants["weekdays"] = {at: Silence(0, 0, 7) if is_weekend(at) else row for at, row in tenants["old"].items()}
    tokens: dict[str, dict[int, int]] = {}
    for tenant, hours in tenants.items():
        tokens[tenant] = {}
        for at, row in hours.items():
            if row.issued and at < hour // DAY * DAY:
                tokens[tenant][at // DAY * DAY] = tokens[tenant].get(at // DAY * DAY, 0) + row.issued
    insert(
        connection,
        "tenant_hour",
        "tenant_id, hour, issued, filled, silent",
        [(tenant, at, *row) for tenant, hours in tenants.items() for at, row in hours.items()],
    )
    insert(
        connection,
        "tenant_day",
        "tenant_id, day, issued",
        [
            (tenant, date(1970, 1, 1) + timedelta(days=at // DAY), count)
            for tenant, days in tokens.items()
            for at, count in days.items()
        ],
    )
    day = hour // DAY * DAY
    keys = {"day": day, "targets": [(hour - day) // HOUR], "sources": hours_like([hour]), "generation": 1}
    connection.command(statement("tenant_norms"), keys)
    norms = {row[1]: row[3:-1] for row in connection.rows("SELECT * FROM tenant_norm FINAL")}
    assert norms.keys() == tenants.keys()
    for tenant, hours in tenants.items():
        assert norms[tenant] == pytest.approx(tenant_norm(hours, tokens[tenant], hour)), tenant
