"""Alerts as episodes of verdicts, what shows them, and what must never raise a storm of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from clickhouse.alert import KINDS, SEVERITIES, Alert
from clickhouse.alerts import Alerts
from clickhouse.connection import Connection
from clickhouse.detection.progress import Progress
from clickhouse.event import Event
from clickhouse.fleet import OTHER
from clickhouse.tenant import TenantId
from clickhouse.watch import Watch, WatchReader, band, merged
from exporter.negotiation import Format
from exporter.watch_lines import WatchLines
from tests.conftest import empty
from tests.support.detection_fleet import BIN, DAY, HOUR, Counts, always, at, detector_at, verdicts
from tests.support.rig import Rig

NOW = at("2026-11-18T10:00:00")
A, B = "org-a", "org-b"
ODD_AGENTS = ('it\'s "quoted" \\ {x:String} %s', "\U0001f916 \u00e9\u4e2d", "a" * 256)


def say(
    connection: Connection,
    bins: Sequence[int],
    *,
    tenant: str = A,
    kind: str = "spike",
    agent: str = "reader",
    severity: str = "page",
    score: float = 2.5,
    generation: int = 1,
) -> None:
    """Writes verdicts as the detector does."""
    rows = [(tenant, kind, agent, start, severity, score, 40.0, 2.0, "five minutes", generation) for start in bins]
    names = "tenant_id kind agent_id bin severity score observed expected detail generation"
    connection.insert("verdicts", names.split(), list(zip(*rows, strict=True)))


def alerts_of(connection: Connection, since: int, now: int, tenant: str = A) -> list[Alert]:
    found = Alerts(connection).of_tenant(TenantId(tenant), since, now)
    assert found == [one for one in Alerts(connection).of_all(since, now) if one.tenant_id == tenant]
    return found


# --- episodes


def test_an_alert_is_a_row_of_bins_and_lasts_until_its_kind_was_quiet(connection: Connection) -> None:
    say(connection, [NOW, NOW + BIN, NOW + BIN + HOUR])
    (alert,) = alerts_of(connection, NOW - DAY, NOW + 2 * HOUR)
    assert (alert.since, alert.until, alert.severity, alert.agent_id) == (NOW, None, "page", "reader")
    (later,) = alerts_of(connection, NOW - DAY, NOW + 2 * HOUR + 2 * BIN)
    assert (later.id, later.until) == (alert.id, NOW + 2 * BIN + HOUR)
    say(connection, [NOW + 2 * BIN + 2 * HOUR])
    assert [one.since for one in alerts_of(connection, NOW, NOW + 3 * HOUR)] == [NOW + 2 * BIN + 2 * HOUR, NOW]


def test_an_alert_has_the_severity_of_its_worst_bin(connection: Connection) -> None:
    say(connection, [NOW], severity="ticket", score=1.9)
    say(connection, [NOW + BIN], severity="page", score=1.2)
    say(connection, [NOW + 2 * BIN], severity="info", score=9)
    (alert,) = alerts_of(connection, NOW - DAY, NOW + HOUR)
    assert (alert.severity, alert.score, alert.observed) == ("page", 1.2, 40.0)
    assert "Agent reader was issued 40 tokens in five minutes, where about 2 are usual" in alert.message


def test_what_is_below_the_limit_or_withdrawn_is_no_alert(connection: Connection) -> None:
    say(connection, [NOW], score=0.9)
    say(connection, [NOW], agent="writer")
    say(connection, [NOW], agent="writer", severity="", score=0, generation=2)
    assert alerts_of(connection, NOW - DAY, NOW + HOUR) == []


def test_tenants_and_kinds_and_agents_have_alerts_of_their_own(connection: Connection) -> None:
    say(connection, [NOW])
    say(connection, [NOW], agent="writer")
    say(connection, [NOW], kind="waste")
    say(connection, [NOW], tenant=B)
    assert len(alerts_of(connection, NOW - DAY, NOW)) == 3
    assert len({one.id for one in Alerts(connection).of_all(NOW - DAY, NOW)}) == 4
    assert len(alerts_of(connection, NOW - DAY, NOW, B)) == 1


@pytest.mark.parametrize(("kind", "pause"), [("dominance", HOUR), ("silence", BIN), ("spike", HOUR)])
def test_the_id_of_an_alert_that_lasts_for_days_is_the_same_at_every_look(
    connection: Connection, kind: str, pause: int
) -> None:
    first = NOW - 6 * DAY
    bins = list(range(first, NOW, pause))
    say(connection, bins, kind=kind)
    looks = [
        alerts_of(connection, since, now)
        for since, now in ((NOW - 7 * DAY, NOW), (NOW - HOUR, NOW), (NOW - 2 * DAY, NOW), (NOW - HOUR, NOW + BIN))
    ]
    assert {(one.id, one.since) for look in looks for one in look} == {(looks[0][0].id, first)}
    assert [len(look) for look in looks] == [1, 1, 1, 1]


def test_an_alert_that_lasts_into_the_next_month_begins_anew_with_it(connection: Connection) -> None:
    """So that what is read for an alert's id has a beginning."""
    december = at("2026-12-01")
    say(connection, range(december - DAY, december + DAY, HOUR), kind="dominance")
    for since in (december - 2 * DAY, december - DAY):
        assert [one.since for one in alerts_of(connection, since, december + DAY)] == [december, december - DAY]
    ids = {one.id for since in (-3, 0, 2, 24) for one in alerts_of(connection, december + since * HOUR, december + DAY)}
    assert len(ids) == 2


def test_over_alerts_are_not_told_for_ever(connection: Connection) -> None:
    say(connection, [NOW - 2 * DAY])
    assert alerts_of(connection, NOW - DAY, NOW) == []
    assert len(alerts_of(connection, NOW - 3 * DAY, NOW)) == 1


# --- the watch


def watch_of(connection: Connection, now: int) -> Watch:
    return WatchReader(connection, lambda: float(now)).read()


def test_the_watch_has_what_lasts(connection: Connection) -> None:
    say(connection, [NOW - BIN])
    say(connection, [NOW - BIN], agent="writer")
    say(connection, [NOW - BIN], agent="", kind="silence", score=0.7)
    say(connection, [NOW - 5 * DAY], tenant=B)
    say(connection, [NOW - 8 * DAY], tenant="org-c")
    Progress(connection).write(judged=NOW)
    watch = watch_of(connection, NOW)
    assert watch.judged == NOW
    assert watch.alerts == {A: {("spike", "page"): 2}, B: {}}
    assert watch.spike == {A: 2.5}
    assert watch.silence == {A: 0.7}


def test_the_watch_of_an_empty_store_is_empty(connection: Connection) -> None:
    assert watch_of(connection, NOW) == Watch()


def test_the_watch_is_read_again_once_the_detector_has_said_more(connection: Connection) -> None:
    reader = WatchReader(connection, lambda: float(NOW))
    assert reader.read() is reader.read()
    say(connection, [NOW - BIN])
    Progress(connection).write(judged=NOW)
    assert reader.read().alerts == {A: {("spike", "page"): 1}}
    assert reader.read() is reader.read()


def test_a_watch_that_could_not_be_read_is_read_at_the_next_look(
    embedded_store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(embedded_store)
    Progress(embedded_store).write(judged=NOW + DAY)
    reader = WatchReader(embedded_store, lambda: float(NOW))
    with monkeypatch.context() as patch:
        patch.setattr(embedded_store, "rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reader.read()
    assert reader.read().judged == NOW + DAY


@pytest.mark.parametrize("format_", Format)
def test_the_watch_renders_every_kind_and_severity_of_a_tenant_that_had_one(format_: Format) -> None:
    watch = Watch(
        judged=NOW,
        alerts={A: {("spike", "page"): 2}, OTHER: {("spike", "page"): 1}, B: {}},
        spike={A: 2.25},
        silence={B: 0.75},
        expected={A: band(4.0)},
    )
    tenants = [A, B, "org-quiet", OTHER]
    pieces = WatchLines().render(watch, tenants, (OTHER,))[format_]
    text = b"".join(piece.raw for piece in pieces).decode()
    parse = parse_text if format_ is Format.TEXT else parse_openmetrics
    families = {family.name: family for family in parse(text + ("" if format_ is Format.TEXT else "# EOF\n"))}
    assert {family.type for family in families.values()} == {"gauge"}
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert OTHER not in text
    lasting = {key: value for key, value in samples.items() if key[0] == "agentidp_tenant_alerts"}
    assert len(lasting) == 2 * len(KINDS) * len(SEVERITIES)
    assert {key: value for key, value in lasting.items() if value} == {
        ("agentidp_tenant_alerts", ("kind", "spike"), ("severity", "page"), ("tenant_id", A)): 2
    }
    scores = {key[1][1]: value for key, value in samples.items() if key[0] == "agentidp_tenant_spike_score"}
    assert scores == {A: 2.25, B: 0, "org-quiet": 0}
    bounds = {key[1][1]: value for key, value in samples.items() if key[0] == "agentidp_tenant_expected_tokens"}
    assert bounds["lower"] < bounds["expected"] == 4 < bounds["upper"]


def test_a_detector_that_has_judged_nothing_shows_no_score() -> None:
    pieces = WatchLines().render(Watch(), [A], ())[Format.TEXT]
    assert not [line for piece in pieces for line in piece.raw.decode().splitlines() if not line.startswith("#")]


def test_shards_are_judged_as_far_as_the_last_of_them() -> None:
    watch = merged([Watch(judged=NOW, spike={A: 1.5}), Watch(judged=NOW - BIN, spike={B: 0.5})])
    assert (watch.judged, watch.spike) == (NOW - BIN, {A: 1.5, B: 0.5})


# --- what raises no storm


def steady(connection: Connection, *, until: int, days: int = 23, tenants: Sequence[str] = (A, B, "org-c")) -> Counts:
    """Tenants that are issued tokens at every hour."""
    fleet = Counts()
    for tenant in tenants:
        for agent in ("reader", "writer"):
            fleet.works(tenant, agent, NOW - days * DAY, until, 4, always)
    fleet.load(connection)
    return fleet


def loud(connection: Connection) -> list[tuple[str, str, str, int]]:
    return [key for key, (severity, score) in verdicts(connection).items() if severity == "page" and score > 1]


def test_an_empty_store_says_nothing(connection: Connection) -> None:
    detector = detector_at(connection, NOW)
    detector.tick()
    assert verdicts(connection) == {}
    assert Progress(connection).read()["judged"] == NOW


def test_a_tenant_with_one_event_ever_says_nothing(connection: Connection) -> None:
    rig = Rig(connection)
    rig.writer.write([Event(A, (NOW - 40 * 60) * 1000, "only", "a", client_ip="10.0.0.1", expires_in=60)])
    rig.upkeep.settle()
    for now in (NOW, NOW + HOUR):
        detector_at(connection, now).tick()
    assert verdicts(connection) == {}


def test_a_backfill_of_a_year_raises_nothing(connection: Connection) -> None:
    detector_at(connection, NOW).tick()
    fleet = Counts()
    for month in range(1, 13):
        fleet.bins[A, "reader"][NOW - month * 30 * DAY] = 500
        fleet.failed[A, "writer"][NOW - month * 30 * DAY] = 500
    fleet.load(connection, generation=2**63)
    detector_at(connection, NOW + BIN).tick()
    detector_at(connection, NOW + HOUR).tick()
    assert verdicts(connection) == {}


def test_agents_of_any_name_are_told(connection: Connection) -> None:
    fleet = Counts()
    for agent in ODD_AGENTS:
        fleet.works(A, agent, NOW - 9 * DAY, NOW, 3, always)
        for start in range(NOW - 1800, NOW, BIN):
            fleet.bins[A, agent][start] = 90
    fleet.load(connection)
    detector_at(connection, NOW, norms_since=NOW - HOUR).tick()
    spikes = [one for one in alerts_of(connection, NOW - DAY, NOW) if one.kind == "spike"]
    assert {(one.agent_id, one.severity) for one in spikes} == {(agent, "page") for agent in ODD_AGENTS}
    assert all(str(one.agent_id) in one.message for one in spikes)


def test_a_service_that_was_away_waits_for_what_is_sent_again_before_it_calls_tenants_silent(
    embedded_store: Connection,
) -> None:
    connection = empty(embedded_store)
    fleet = steady(connection, until=NOW)
    detector_at(connection, NOW, norms_since=NOW - 2 * HOUR).tick()
    back = NOW + 6 * HOUR
    detector_at(connection, back).tick()
    detector_at(connection, back + BIN).tick()
    assert verdicts(connection) == {}
    for tenant in (A, B):  # one of three stays silent
        for agent in ("reader", "writer"):
            fleet.works(tenant, agent, NOW, back + HOUR, 4, always)
    fleet.load(connection, generation=2**63)
    for now in range(back + 2 * BIN, back + 6 * BIN, BIN):
        detector_at(connection, now).tick()
    assert {(tenant, kind) for tenant, kind, _, _ in loud(connection)} == {("org-c", "silence")}


def test_a_clock_that_is_set_back_or_forward_raises_nothing(embedded_store: Connection) -> None:
    connection = empty(embedded_store)
    steady(connection, until=NOW + 4 * HOUR)
    # Tokens of what is to come are there: what the detector sees is only a clock that moves.
    for hours in (0, -2, 1, -1.5, 3, 0.5, -26, 1.25):
        now = NOW + int(hours * HOUR)
        detector_at(connection, now, norms_since=NOW - 2 * HOUR if hours == 0 else None).tick()
        assert loud(connection) == [], hours


def test_an_hour_that_the_clock_jumped_over_has_its_norms_once_it_comes(embedded_store: Connection) -> None:
    """Without them everything that an agent does is a record."""
    connection = empty(embedded_store)
    steady(connection, until=NOW + 4 * HOUR)
    detector_at(connection, NOW, norms_since=NOW - 2 * HOUR).tick()
    detector_at(connection, NOW + 3 * HOUR).tick()  # and back
    detector_at(connection, NOW + HOUR + 6 * BIN).tick()
    norms = "SELECT count() FROM agent_norm FINAL WHERE hour = toDateTime({hour:UInt32}, 'UTC')"
    assert connection.rows(norms, {"hour": NOW + HOUR}) == [(6,)]
    assert verdicts(connection) == {}


# --- what is taken back


def test_what_a_late_event_disproves_is_withdrawn(embedded_store: Connection) -> None:
    connection = empty(embedded_store)
    fleet = steady(connection, until=NOW - HOUR, tenants=[A])
    detector_at(connection, NOW - HOUR, norms_since=NOW - 2 * HOUR).tick()
    for now in range(NOW - HOUR + BIN, NOW + 1, BIN):
        detector_at(connection, now).judge(now - BIN, now)
    (alert,) = alerts_of(connection, NOW - DAY, NOW)
    assert (alert.kind, alert.until) == ("silence", None)
    # The first half of its tokens: it is silent since then, which is not long enough yet.
    fleet.works(A, "reader", NOW - HOUR, NOW - 1800, 4, always)
    fleet.load(connection, generation=2**63)
    detector_at(connection, NOW).tick()
    assert alerts_of(connection, NOW - DAY, NOW) == []
    rows = connection.rows("SELECT count(), max(score) FROM verdicts FINAL WHERE kind = 'silence' AND score <= 1")
    assert rows[0][0] > 0
    assert rows[0][1] <= 1


def test_two_detectors_side_by_side_say_what_one_says(embedded_store: Connection) -> None:
    def said(turns: int) -> object:
        connection = empty(embedded_store)
        fleet = Counts()
        fleet.works(A, "reader", NOW - 9 * DAY, NOW + HOUR, 3, always)
        fleet.bins[A, "reader"] |= dict.fromkeys(range(NOW - 1800, NOW, BIN), 90)
        fleet.load(connection)
        detectors = [detector_at(connection, NOW, norms_since=NOW - HOUR) for _ in range(turns)]
        for detector in detectors:
            detector.tick()
        return verdicts(connection)

    once = said(1)
    assert once
    assert said(2) == once
