"""Each definition of the score against a case made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.detection.alarm import Alarm
from bench.detection.label import AgentKind, Label
from bench.detection.rate import Rate, Share, poisson_interval
from bench.detection.score import (
    ALL_KINDS,
    PAGE,
    PAGE_AND_TICKET,
    PEERS_QUESTIONS,
    SCORED_FROM_DAY,
    Figures,
    Fleet,
    episodes,
    fleet_of,
    score,
)
from bench.detection.table import table
from bench.detection.traces import Trace

BIN, HOUR, DAY = 300, 3600, 86_400
T0 = 10_000 * BIN
FLEET = Fleet(T0, {"a": 2.0, "b": 2.0}, {("a", "x"): AgentKind("office", "nat"), ("a", "y"): AgentKind("ci", "")})


def alarm(
    start: int, end: int = 0, *, tenant: str = "a", agent: str = "x", kind: str = "spike", to: str = "page"
) -> Alarm:
    return Alarm(tenant, agent, kind, to, T0 + start, T0 + max(start, end))


def label(
    start: int,
    end: int,
    kind: str = "retry",
    agent: str = "x",
    *,
    expected: float = 0,
    extra: float = 0,
    first10: float = 0,
) -> Label:
    return Label("a", agent, kind, T0 + start, T0 + end, 5.0, expected, extra, first10)


def scored(alarms: list[Alarm], labels: list[Label], severities: frozenset[str] = PAGE) -> Figures:
    return score(alarms, labels, FLEET, severities)


def false_alarms(alarms: list[Alarm], labels: list[Label], kind: str = ALL_KINDS) -> int:
    return scored(alarms, labels).false_alarms[kind].episodes


def found(alarms: list[Alarm], labels: list[Label], question: str = "loops") -> tuple[int, int]:
    share = scored(alarms, labels).found[question]
    return share.found, share.total


def test_alarms_within_two_hours_are_one_episode() -> None:
    near = alarm(BIN + 2 * HOUR)  # the first one lasts a bin
    assert episodes([near, alarm(0)])["a"] == [(T0, T0 + 2 * BIN + 2 * HOUR)]
    assert len(episodes([alarm(0), alarm(2 * BIN + 2 * HOUR)])["a"]) == 2
    assert len(episodes([alarm(0, 5 * HOUR), alarm(HOUR), alarm(6 * HOUR)])["a"]) == 1
    assert len(episodes([alarm(0), alarm(0, tenant="b")])) == 2


def test_a_false_alarm_overlaps_no_event_up_to_two_hours_after_it() -> None:
    event = label(10 * HOUR, 11 * HOUR, agent="other")
    assert false_alarms([alarm(10 * HOUR)], [event]) == 0
    assert false_alarms([alarm(13 * HOUR - BIN)], [event]) == 0
    assert false_alarms([alarm(13 * HOUR)], [event]) == 1
    assert false_alarms([alarm(9 * HOUR, 10 * HOUR)], [event]) == 1
    assert false_alarms([alarm(9 * HOUR, 10 * HOUR + BIN)], [event]) == 0
    assert false_alarms([alarm(10 * HOUR, tenant="b")], [event]) == 1


def test_false_alarms_are_counted_by_kind_and_severity_and_together() -> None:
    alarms = [alarm(0), alarm(HOUR, kind="silence"), alarm(DAY, to="ticket"), alarm(2 * DAY, to="info")]
    page = scored(alarms, []).false_alarms
    assert {kind: rate.episodes for kind, rate in page.items()} == {ALL_KINDS: 1, "spike": 1, "silence": 1}
    both = scored(alarms, [], PAGE_AND_TICKET).false_alarms
    assert {kind: rate.episodes for kind, rate in both.items()} == {ALL_KINDS: 2, "spike": 2, "silence": 1}
    assert both[ALL_KINDS].per_week == 0.5


def test_only_what_starts_in_the_scored_part_counts() -> None:
    early = label(-BIN, BIN)
    assert scored([alarm(-BIN)], [early]).false_alarms[ALL_KINDS].episodes == 0
    assert "loops" not in scored([alarm(-BIN)], [early]).found
    assert false_alarms([alarm(0)], [early]) == 0  # an event that began before is one all the same


def test_an_event_is_found_while_it_lasts() -> None:
    event = label(0, HOUR)
    assert found([alarm(0)], [event]) == (1, 1)
    assert found([alarm(HOUR - BIN)], [event]) == (1, 1)
    assert found([alarm(HOUR)], [event]) == (0, 1)
    assert found([alarm(-BIN, HOUR)], [label(0, HOUR)]) == (0, 1)


def test_an_event_is_found_by_its_agent_or_its_tenant_and_kind() -> None:
    event = label(0, HOUR)
    assert found([alarm(0, agent="y")], [event]) == (0, 1)
    assert found([alarm(0, agent="y"), alarm(BIN)], [event]) == (1, 1)
    assert found([alarm(0, agent="")], [event]) == (1, 1)
    assert found([alarm(0, tenant="b")], [event]) == (0, 1)
    assert found([alarm(0, kind="waste")], [event]) == (0, 1)
    assert found([alarm(0, to="ticket")], [event]) == (0, 1)
    assert found([alarm(0, kind="waste")], [label(0, HOUR, first10=100)], "  by an alert of any kind") == (1, 1)


def test_loops_by_size() -> None:
    loops = [
        label(0, HOUR, extra=19.9, first10=1),
        label(DAY, DAY + HOUR, extra=20, first10=99),
        label(2 * DAY, 3 * DAY),
    ]
    loops[2] = loops[2]._replace(extra=500, first10=100)
    assert found([], loops) == (0, 3)
    assert found([], loops, "loops, 20 tokens or more") == (0, 2)
    assert found([], loops, "material loops: 100 tokens in 10 min") == (0, 1)


def test_within_five_and_ten_minutes_is_by_the_end_of_the_bin() -> None:
    loop = label(0, HOUR, first10=100)
    for start, ten, five in ((0, 1, 1), (BIN, 1, 0), (2 * BIN, 0, 0)):
        assert found([alarm(start)], [loop], "  within 10 min") == (ten, 1)
        assert found([alarm(start)], [loop], "  within 5 min") == (five, 1)
    assert scored([alarm(BIN)], [loop]).found["loops"].seconds == [600]


def test_material_loops_by_kind_of_agent() -> None:
    loops = [
        label(0, HOUR, first10=100),
        label(DAY, DAY + HOUR, agent="y", first10=100),
        label(2 * DAY, 3 * DAY, agent="y"),
    ]
    figures = scored([alarm(0)], loops).found
    assert (figures["  of office agents"].found, figures["  of office agents"].total) == (1, 1)
    assert (figures["  of ci agents"].found, figures["  of ci agents"].total) == (0, 1)
    assert "  of daily agents" not in figures


def test_silences_of_ten_expected_tokens() -> None:
    silences = [label(0, HOUR, "silence", "", expected=10), label(DAY, DAY + HOUR, "silence", "", expected=9.9)]
    assert found([alarm(0, agent="", kind="silence")], silences, "silences, 10 tokens expected") == (1, 1)
    assert found([alarm(0, kind="spike")], silences, "silences, 10 tokens expected") == (0, 1)


def test_leaks_have_their_deadlines() -> None:
    odd = [label(0, 7 * DAY, "leak")]
    question = "leaks at odd hours, within 48 h"
    assert found([alarm(48 * HOUR - BIN, kind="unusual_hours")], odd, question) == (1, 1)
    assert found([alarm(48 * HOUR, kind="unusual_hours")], odd, question) == (0, 1)
    away = [label(0, DAY, "leak_network")]
    question = "leaks from elsewhere, within 1 h"
    assert found([alarm(HOUR - BIN, kind="new_network")], away, question) == (1, 1)
    assert found([alarm(HOUR, kind="new_network")], away, question) == (0, 1)
    assert found([alarm(0, kind="new_network")], away, "  of agents at network nat") == (1, 1)
    hidden = [label(0, DAY, "leak_network", "y")]
    assert found([], hidden, "  of tenants that tell no address") == (0, 1)
    assert found([alarm(0, kind="waste")], [label(0, DAY, "leak_inside")], "leaks from the agent's network") == (1, 1)


def test_storms_and_weekends() -> None:
    assert found([alarm(0, kind="failures")], [label(0, HOUR, "failures")], "storms of failures") == (1, 1)
    weekend = [label(0, HOUR, "weekend")]
    assert found([alarm(0, kind="unusual_hours")], weekend, "work at weekends") == (1, 1)
    assert found([alarm(0)], weekend, "work at weekends") == (1, 1)


def test_peers_are_asked_only_what_they_could_answer() -> None:
    labels = [label(0, DAY, "leak_network"), label(0, DAY, "silence", ""), label(0, DAY)]
    assert set(score([], labels, FLEET, PAGE, PEERS_QUESTIONS).found) == {"loops"}
    labels[1] = labels[1]._replace(expected=10)
    assert set(score([], labels, FLEET, PAGE, PEERS_QUESTIONS).found) == {"loops", "silences, 10 tokens expected"}


def test_alarms_of_unknown_tenants_are_refused() -> None:
    with pytest.raises(ValueError, match="the trace has not: c"):
        scored([alarm(0, tenant="c")], [])


def test_tenant_weeks_are_those_of_the_trace() -> None:
    starts = np.array([T0, T0 + 49 * DAY - BIN, T0 + 42 * DAY])
    trace = Trace([("a", "x"), ("b", "z")], np.array([0, 0, 1], dtype=np.int32), starts, np.ones(3, dtype=np.int64))
    fleet = fleet_of(trace, {})
    assert fleet.scored_from == T0 + SCORED_FROM_DAY * DAY
    assert fleet.weeks == {"a": 2.0, "b": 1.0}


def test_folds_are_of_tenants() -> None:
    fleet = Fleet(T0, dict.fromkeys("abcdefg", 1.0), {})
    assert sorted(name for fold in fleet.folds for name in fold) == list("abcdefg")
    loops = [label(0, HOUR)._replace(tenant=name) for name in "ab"]
    figures = score([alarm(0), alarm(DAY), alarm(0, tenant="g")], loops, fleet, PAGE)
    assert figures.found["loops"].spread == (0.0, 1.0)
    assert figures.false_alarms[ALL_KINDS].folds == [(1, 2.0), (1, 2.0), (0, 1.0), (0, 1.0), (0, 1.0)]
    assert figures.false_alarms[ALL_KINDS].spread == (0.0, 0.5)


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (24, 15.377, 35.710)])
def test_poisson_intervals_are_the_exact_ones(count: int, low: float, high: float) -> None:
    assert poisson_interval(count) == pytest.approx((low, high), abs=0.001)


def test_nothing_counted_is_no_number() -> None:
    assert math.isnan(Share(0, 0).share)
    assert math.isnan(Rate(0, 0.0).per_week)


def test_the_table_has_every_figure() -> None:
    ours = scored([alarm(0), alarm(DAY)], [label(0, HOUR, extra=20), label(0, DAY, "leak")])
    peers = score([], [label(0, HOUR)], FLEET, PAGE, PEERS_QUESTIONS)
    lines = table({"ours": ours, "theirs": peers}, 2, 4.0).splitlines()
    assert lines[0] == "2 tenants, 4.0 tenant-weeks scored"
    rows = {line[:48].strip(): line[48:].split() for line in lines if line.startswith("  ")}
    assert rows["all kinds"] == ["0.0000", "0.0000-0.9222", "0.0000", "0.0000-0.9222"]
    assert rows["loops (n 1)"] == ["1.000", "1.00-1.00", "0.000", "0.00-0.00"]
    assert rows["leaks at odd hours, within 48 h (n 1)"] == ["0.000", "0.00-0.00", "-"]
    assert rows["loops"] == ["5", "-"]
