"""What the detector says of a fleet with 40 days of history and an incident of each kind, and what it does not say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from clickhouse.alert import Alert
from clickhouse.alerts import Alerts
from clickhouse.connection import Connection
from clickhouse.event import Event
from tests.conftest import empty
from tests.support.detection_fleet import (
    BIN,
    DAY,
    HOUR,
    Counts,
    Verdicts,
    always,
    at,
    detector_at,
    office,
    verdicts,
)
from tests.support.rig import Rig

DAY_OF_INCIDENTS = at("2026-11-18")  # a Wednesday
BORN = DAY_OF_INCIDENTS - 40 * DAY
TEN, END = DAY_OF_INCIDENTS + 10 * HOUR, DAY_OF_INCIDENTS + 12 * HOUR + 1800
SUNDAY = at("2026-11-15")


def counts() -> Counts:
    """One tenant for each incident, or for what looks like one."""
    fleet = Counts()
    for tenant in ("loop", "monday", "deploy", "newcomer", "weekend", "leak", "storm", "takeover"):
        fleet.works(tenant, "clerk", BORN, END, 3)
        fleet.works(tenant, "assistant", BORN, END, 2)
        fleet.works(tenant, "batch", BORN, END, 1, always)
    loop, deploy = fleet.bins["loop", "clerk"], fleet.bins["deploy", "clerk"]
    for bin_ in range(TEN, TEN + 1800, BIN):
        loop[bin_] = 60
    fleet.works("monday", "clerk", DAY_OF_INCIDENTS, END, 1)  # a third more than on other days
    deploy[TEN] = 20
    fleet.works("newcomer", "new", DAY_OF_INCIDENTS - 3 * DAY, END, 2)
    for bin_ in range(TEN, TEN + HOUR, BIN):
        fleet.bins["newcomer", "new"][bin_] = 80
    fleet.stops("weekend", SUNDAY - 2 * DAY + 18 * HOUR, SUNDAY + DAY)
    for agent in ("a", "b", "c"):
        fleet.works("silent", agent, BORN, END, 2, always)
    fleet.stops("silent", TEN - HOUR, TEN + 2 * HOUR)
    fleet.works("leak", "clerk", DAY_OF_INCIDENTS - 4 * HOUR, DAY_OF_INCIDENTS + 4 * HOUR, 1, always)
    for slot in range(BORN, END, 900):
        if office(slot):
            fleet.failed["storm", "assistant"][slot] = 3  # a third of its requests, always
    for slot in range(TEN, TEN + HOUR, 900):
        fleet.failed["storm", "clerk"][slot] = 15
    for agent, mean in (("always", 12.0), ("small", 0.3), ("smaller", 0.3)):
        fleet.works("dominated", agent, BORN, END, mean, always)
    fleet.works("takeover", "clerk", DAY_OF_INCIDENTS, END, 60, always)
    del fleet.bins["weekend", "batch"]
    return fleet


def events() -> list[Event]:
    """What cannot be told from counts: lifetimes and networks."""
    found: list[Event] = []

    def token(tenant: str, agent: str, moment: int, ip: str, expires_in: int = 0) -> None:
        found.append(
            Event(tenant, moment * 1000, f"e{len(found)}", agent, client_ip=ip, scope="read", expires_in=expires_in)
        )

    for hour in range(BORN, END, HOUR):
        token("waste", "honest", hour + 60, "10.0.0.1", 3600)
        token("waste", "honest", hour + 90, "10.0.0.2", 3600)
        token("waste", "looping", hour + 60, "10.0.0.3", 3600)
        token("waste", "resent", hour + 60, "10.0.0.4", 3600)
    for second in range(900):
        token("waste", "looping", TEN + 120 + second, "10.0.0.3", 3600)
    resent = [one for one in found if one.agent_id == "resent" and one.issued_at >= TEN * 1000]
    found += [one._replace(source="again") for one in resent for _ in range(40)]
    for number, hour in enumerate(range(BORN, END, 6 * HOUR)):
        for agent in ("stolen", "borrowed", "anonymous"):
            token("network", agent, hour + number, "192.0.2.7")
        token("network", "neighbour", hour + number, "198.51.100.7")
        token("network", "wanderer", hour + number, f"203.{hour // DAY % 200}.{hour // DAY % 250}.9")
        token("network", "six", hour + number, "2001:db8:1::1")
    for number in range(8):
        token("network", "stolen", TEN + 60 * number, "100.64.9.9")
        token("network", "six", TEN + 60 * number, "2001:db9:5::1")
        token("network", "borrowed", TEN + 60 * number, "198.51.100.9")
        token("network", "anonymous", TEN + 60 * number, "")
        token("network", "anonymous", TEN + 60 * number, "not an address")
        token("network", "wanderer", TEN + 60 * number, "203.250.251.9")
    return found


@dataclass(frozen=True)
class World:
    at_noon: list[Alert]
    at_end: list[Alert]
    said: Verdicts
    said_again: Verdicts  # by another detector, of the same hours
    by_ticks: Verdicts  # by a detector that is made anew for every tick
    said_by_then: Verdicts  # of the same bins

    def of(self, tenant: str, kind: str | None = None) -> list[Alert]:
        return [alert for alert in self.at_end if alert.tenant_id == tenant and kind in (None, alert.kind)]

    def only(self, tenant: str, kind: str) -> Alert:
        (alert,) = self.of(tenant, kind)
        return alert


@pytest.fixture(scope="module")
def world(embedded_store: Connection) -> World:
    """Made once: what is asked of it afterwards was read before another test empties the store."""
    connection = empty(embedded_store)
    counts().load(connection)
    rig = Rig(connection, clock=lambda: float(END))
    rig.writer.write(events())
    rig.upkeep.settle()
    detector_at(connection, SUNDAY, norms_since=SUNDAY - DAY - 8 * HOUR).judge(SUNDAY + 11 * HOUR, SUNDAY + 12 * HOUR)
    detector = detector_at(connection, END)
    detector.judge(DAY_OF_INCIDENTS + 3 * HOUR, DAY_OF_INCIDENTS + 4 * HOUR)
    detector.judge(TEN - HOUR, TEN + 900)
    said_by_then = verdicts(connection, TEN - HOUR, TEN + 900)
    alerts = Alerts(connection)
    connection.command(
        "ALTER TABLE verdicts DELETE WHERE bin >= toDateTime({at:UInt32}, 'UTC')", {"at": TEN - HOUR}, mutations_sync=1
    )
    for now in (TEN, TEN + BIN, TEN + 2 * BIN, TEN + 3 * BIN):
        detector_at(connection, now + 20).tick()
    by_ticks = verdicts(connection, TEN - HOUR, TEN + 900)
    detector.judge(TEN + 900, TEN + 2 * HOUR)
    at_noon = alerts.of_all(TEN - HOUR, TEN + 2 * HOUR)
    detector.judge(TEN + 2 * HOUR, END)
    at_end = alerts.of_all(TEN - 12 * HOUR, END + 3 * HOUR)
    said = verdicts(connection)
    detector_at(connection, END).judge(TEN, END)
    return World(at_noon, at_end, said, verdicts(connection), by_ticks, said_by_then)


def test_a_restart_says_the_same(world: World) -> None:
    assert world.said
    assert world.said_again == world.said


def test_a_tick_at_a_time_says_the_same_as_an_hour_at_once(world: World) -> None:
    by_bin = {key: value for key, value in world.by_ticks.items() if key[1] not in ("unusual_hours", "dominance")}
    assert by_bin
    assert by_bin == {
        key: value for key, value in world.said_by_then.items() if key[1] not in ("unusual_hours", "dominance")
    }


def test_a_loop_pages_within_ten_minutes_and_once(world: World) -> None:
    alert = world.only("loop", "spike")
    assert (alert.severity, alert.agent_id) == ("page", "clerk")
    assert TEN <= alert.since <= TEN + BIN  # the start of a bin, judged when that is over
    assert alert.observed > 5 * alert.expected
    assert "Agent clerk was issued" in alert.message


def test_a_loop_is_over_an_hour_after_it(world: World) -> None:
    alert = world.only("loop", "spike")
    assert alert.until is not None
    assert TEN + 1800 <= alert.until <= TEN + 1800 + HOUR
    # At noon its quiet hour was not over.
    (then,) = [one for one in world.at_noon if (one.tenant_id, one.kind) == ("loop", "spike")]
    assert (then.id, then.since) == (alert.id, alert.since)


@pytest.mark.parametrize("tenant", ["monday", "deploy"])
def test_what_is_usual_does_not_page(world: World, tenant: str) -> None:
    assert [alert for alert in world.of(tenant) if alert.severity == "page"] == []


def test_nothing_is_said_of_an_agent_in_its_first_week(world: World) -> None:
    assert [alert for alert in world.of("newcomer") if alert.agent_id == "new" and alert.kind != "dominance"] == []


def test_a_silence_pages_and_ends_with_the_first_token(world: World) -> None:
    alert = world.only("silent", "silence")
    assert (alert.severity, alert.agent_id) == ("page", None)
    assert TEN - HOUR < alert.since <= TEN
    assert alert.until == TEN + 2 * HOUR
    assert alert.expected > 20


def test_a_weekend_is_no_silence(world: World) -> None:
    assert world.of("weekend") == []
    assert [key for key in world.said if key[0] == "weekend" and key[1] == "silence"] == []


def test_a_slow_leak_at_night_is_found(world: World) -> None:
    alert = world.only("leak", "unusual_hours")
    assert (alert.severity, alert.agent_id) == ("ticket", "clerk")


def test_a_storm_of_failures_is_found_and_a_usual_share_is_not(world: World) -> None:
    assert [(alert.agent_id, alert.severity) for alert in world.of("storm", "failures")] == [("clerk", "ticket")]
    assert world.only("storm", "failures").since < TEN + HOUR


def test_a_replica_that_never_caches_wastes(world: World) -> None:
    assert [(alert.agent_id, alert.severity) for alert in world.of("waste", "waste")] == [("looping", "page")]


def test_new_networks(world: World) -> None:
    found = {(alert.agent_id, alert.severity): alert for alert in world.of("network", "new_network")}
    assert found.keys() == {("stolen", "page"), ("six", "page")}
    assert found["stolen", "page"].detail == "100.64.9.0/24"
    assert found["six", "page"].detail == "2001:db9:5::/48"
    assert found["stolen", "page"].observed == 8


def test_who_always_dominates_is_worth_knowing_and_who_suddenly_does_a_ticket(world: World) -> None:
    assert {(alert.agent_id, alert.severity) for alert in world.of("dominated", "dominance")} == {("always", "info")}
    assert {(alert.agent_id, alert.severity) for alert in world.of("takeover", "dominance")} == {("clerk", "ticket")}


def test_nothing_else_is_said(world: World) -> None:
    """An alert of a kind that no scenario is about is a false one."""
    expected: dict[str, set[Any]] = {
        "loop": {"spike"},
        "deploy": {"spike"},  # a ticket: one bin looks the same as the first one of a loop
        "silent": {"silence"},
        "leak": {"unusual_hours", "spike"},
        "storm": {"failures"},
        "waste": {"waste", "spike", "dominance"},
        "network": {"new_network", "spike", "unusual_hours"},
        "dominated": {"dominance"},
        "takeover": {"dominance", "spike", "unusual_hours"},
    }
    others = [alert for alert in world.at_end if alert.kind not in expected.get(alert.tenant_id, set())]
    assert [(one.tenant_id, one.kind, one.agent_id, one.severity, _hour(one.since)) for one in others] == []


def _hour(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
