"""Every panel's query on a real Prometheus that holds fifteen days of three tenants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from tests.support.grafana_panels import Query, evaluate_dashboards, load, queries, run, variable_values
from tests.support.prometheus_server import PrometheusError, PrometheusServer, create_blocks, prometheus, quick_config

JOB = "agentidp-analytics"
# A Wednesday noon.
END = int(datetime(2026, 6, 17, 12, tzinfo=UTC).timestamp())
START = END - 15 * 86400
# Every 5 minutes first, as often as Prometheus scrapes in the last 2 hours: what must be exact is hours and days.
TIMES = [*range(START, END - 7200, 300), *range(END - 7200, END + 1, 15)]
RECENT = [time for time in TIMES if time >= END - 7200]
OFFICE_RATE = 0.1
EXPECTED = 300  # tokens in 5 minutes
STEADY = "globex:eu-1.prod"


def at_office(time: int) -> bool:
    moment = datetime.fromtimestamp(time, UTC)
    return moment.weekday() < 5 and 9 <= moment.hour < 17


def series(name: str, labels: dict[str, str], value: Callable[[int], float], times: list[int] = TIMES) -> Iterator[str]:
    shown = ",".join(f'{key}="{text}"' for key, text in (labels | {"job": JOB}).items())
    return (f"{name}{{{shown}}} {value(time):.6g} {time}" for time in times)


def counter(rate: Callable[[int], float]) -> Callable[[int], float]:
    """The integral of a rate per second that is constant between two scrapes."""
    total, totals = 0.0, {START: 0.0}
    for before, after in pairwise(TIMES):
        total += rate(before) * (after - before)
        totals[after] = total
    return totals.__getitem__


def tenant_lines() -> Iterator[str]:
    rates: dict[str, Callable[[int], float]] = {
        "acme": lambda time: OFFICE_RATE * at_office(time),
        STEADY: lambda _: 1.0,
        "initech": lambda time: 0.2 * (time < END - 3 * 86400),
        "_other": lambda _: 0.5,
    }
    # Two exporters show the same store; nothing may be doubled by it.
    for instance in ("a:9464", "b:9464"):
        for tenant, rate in rates.items():
            labels = {"instance": instance, "tenant_id": tenant}
            yield from series("agentidp_tenant_tokens_issued_total", labels, counter(rate))
            yield from series("agentidp_tenant_token_failures_total", labels, lambda time: (time - START) * 0.01)
            yield from series("agentidp_tenant_active_agents", labels, lambda _: 4)
            yield from series("agentidp_tenant_top_agent_ratio", labels, lambda _: 0.7)
            yield from series("agentidp_tenant_month_tokens", labels, lambda _: 5000)
            silent = 3 * 86400 if tenant == "initech" else 30
            yield from series(
                "agentidp_tenant_last_issued_timestamp_seconds",
                labels,
                lambda time, silent=silent: time - silent,  # type: ignore[misc]
            )
            yield from series("agentidp_tenant_spike_score", labels, lambda _: 0.5)
            yield from series("agentidp_tenant_silence_score", labels, lambda _: 0.5)
            for bound, tokens in (("lower", 150), ("expected", EXPECTED), ("upper", 450)):
                band = labels | {"bound": bound}
                yield from series("agentidp_tenant_expected_tokens", band, lambda _, tokens=tokens: tokens)  # type: ignore[misc]
            for kind in ("spike", "silence"):
                found = labels | {"kind": kind, "severity": "page"}
                yield from series("agentidp_tenant_alerts", found, lambda _: 1, RECENT)


def service_lines() -> Iterator[str]:
    gauges = {
        "up": 1,
        "snapshot_age_seconds": 12,
        "refresh_duration_seconds": 0.02,
        "tenants": 3,
        "dropped_tenants": 0,
        "build_info": 1,
        "dirty_slots": 4,
        "verify_differences": 0,
        "verify_last_run_timestamp_seconds": END - 3600,
        "ingest_last_accepted_timestamp_seconds": END - 30,
    }
    for name, value in gauges.items():
        labels = {"version": "0.1.0"} if name == "build_info" else {}
        yield from series(
            f"agentidp_analytics_{name}",
            labels | {"instance": "a:9464"},
            lambda _, value=value: value,  # type: ignore[misc]
            RECENT,
        )
    counters: list[tuple[str, dict[str, str]]] = [
        ("refreshes_total", {}),
        ("refresh_failures_total", {}),
        ("duplicates_found_total", {}),
        ("ingest_events_accepted_total", {}),
        ("ingest_events_rejected_total", {"reason": "format"}),
        ("auth_failures_total", {"reason": "expired"}),
        ("http_requests_total", {"route": "/api/v1/events", "method": "POST", "code": "200"}),
    ]
    for histogram in ("commit_events", "commit_duration_seconds", "recompute_duration_seconds"):
        counters += [(f"{histogram}_bucket", {"le": bound}) for bound in ("1.0", "10.0", "+Inf")]
    for bound in ("0.1", "1.0", "+Inf"):
        counters.append(("http_request_duration_seconds_bucket", {"route": "/api/v1/events", "le": bound}))
    for name, labels in counters:
        yield from series(
            f"agentidp_analytics_{name}", labels | {"instance": "a:9464"}, lambda time: float(time - START), RECENT
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    directory = tmp_path_factory.mktemp("prometheus")
    data = directory / "data"
    create_blocks("\n".join([*tenant_lines(), *service_lines(), "# EOF\n"]), data)
    # Nothing listens on port 1: what Prometheus shows is what was put there.
    with prometheus(quick_config(directory, "127.0.0.1:1"), data) as running:
        yield running


def panel_query(server: PrometheusServer, title: str, tenant: str) -> Query:
    """The first query of a panel of the tenant dashboard."""
    (dashboard,) = (one for one in load() if one["uid"] == "agentidp-tenant")
    values = variable_values(server.base_url, dashboard, END, {"tenant": tenant})
    return next(query for query in queries(dashboard, values) if query.panel == title)


@pytest.mark.parametrize("tenant", ["acme", STEADY])
def test_every_query_of_every_panel_returns_something(server: PrometheusServer, tenant: str) -> None:
    evaluations = evaluate_dashboards(server.base_url, END, tenant)
    assert {evaluation.dashboard for evaluation in evaluations} == {dashboard["title"] for dashboard in load()}
    assert [evaluation for evaluation in evaluations if evaluation.series == 0] == []


def test_a_wrong_query_is_no_empty_panel(server: PrometheusServer) -> None:
    with pytest.raises(PrometheusError, match="parse error"):
        run(server.base_url, Query("", "sum(", instant=True, seconds=60, step=15), END)


def test_tenants_to_choose_from_are_tenants(server: PrometheusServer) -> None:
    (dashboard,) = (one for one in load() if one["uid"] == "agentidp-tenant")
    assert variable_values(server.base_url, dashboard, END, {})["tenant"] == "acme"  # not _other, which sorts first
    with pytest.raises(LookupError, match="has no value"):
        variable_values(server.base_url, dashboard, START - 86400, {})


def test_heatmap_has_each_hour_of_the_week_once(server: PrometheusServer) -> None:
    cells = run(server.base_url, panel_query(server, "Tokens by weekday and hour", "acme"), END)
    counts = {(int(cell["metric"]["weekday"]), cell["metric"]["hour"]): float(cell["value"][1]) for cell in cells}
    assert set(counts) == {(weekday, f"{hour:02}") for weekday in range(7) for hour in range(24)}
    # From Tuesday noon to Wednesday noon two weeks later: three mornings of a Wednesday, two Mondays, 360 an hour.
    assert counts[3, "09"] == pytest.approx(3 * 360, rel=0.02)
    assert counts[3, "13"] == pytest.approx(2 * 360, rel=0.02)
    assert counts[1, "16"] == pytest.approx(2 * 360, rel=0.02)
    quiet = [count for (weekday, hour), count in counts.items() if weekday in (0, 6) or not 9 <= int(hour) < 17]
    assert sum(quiet) == pytest.approx(0, abs=1)


def test_daily_bars_are_calendar_days(server: PrometheusServer) -> None:
    (bars,) = run(server.base_url, panel_query(server, "Tokens issued per day", "acme"), END)
    days = {datetime.fromtimestamp(time, UTC).isoformat(): float(count) for time, count in bars["values"]}
    assert days["2026-06-15T00:00:00+00:00"] == pytest.approx(8 * 360, rel=0.02)
    assert days["2026-06-14T00:00:00+00:00"] == pytest.approx(0, abs=1)
    assert days["2026-06-17T00:00:00+00:00"] == pytest.approx(3 * 360, rel=0.02)  # today, so far


def test_two_exporters_do_not_double(server: PrometheusServer) -> None:
    (now,) = run(server.base_url, panel_query(server, "Rate now against the same hour last week", STEADY), END)
    assert float(now["values"][-1][1]) == pytest.approx(1, rel=0.02)
    (dashboard,) = (one for one in load() if one["uid"] == "agentidp-tenant")
    panel = [
        query
        for query in queries(dashboard, variable_values(server.base_url, dashboard, END, {"tenant": STEADY}))
        if query.panel == "Rate now against the same hour last week" and 'bound="expected"' in query.expr
    ]
    (expected,) = run(server.base_url, panel[0], END)
    assert float(expected["values"][-1][1]) == EXPECTED / 300


def test_a_real_prometheus_evaluates_every_rule(server: PrometheusServer) -> None:
    rules = server.wait_for(
        "every rule has been evaluated",
        lambda now: all(rule["health"] != "unknown" for rule in now.rules()) and now.rules(),
    )
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []


def test_the_example_configuration_notices_that_nothing_listens(server: PrometheusServer) -> None:
    expected = {("AgentidpExporterDown", "page"), ("AgentidpExporterDown", "ticket"), ("AgentidpWatchdog", "info")}
    server.wait_for(
        "these alerts and no others",
        lambda now: {(a["labels"]["alertname"], a["labels"]["severity"]) for a in now.alerts()} == expected,
    )
