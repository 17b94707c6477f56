"""The dashboard of all tenants; the service itself is at its end."""

from __future__ import annotations

from typing import Final

from grafana.panels import (
    FLEET_UID,
    TENANT_UID,
    TOKENS_PER_SECOND,
    Json,
    alert_annotation,
    bar_gauge,
    dashboard,
    dashboard_link,
    datasource_variable,
    lay_out,
    override,
    stat,
    table,
    thresholds,
    timeseries,
    variable,
)
from grafana.queries import (
    ACTIVE_AGENTS,
    FAILED,
    ISSUED,
    JOB,
    LAST_ISSUED,
    MONTH,
    NOW,
    RATE_WINDOW,
    SILENCE_SCORE,
    SPIKE_SCORE,
    TOP_AGENT,
    by_tenant,
    expected,
    failure_ratio,
    gauge,
    increase,
    rate,
)
from grafana.service import health, ingest, requests

_REAL_TENANTS: Final = f'{JOB}, tenant_id!="_other"'
_LAST_TOKEN_AGE: Final = f"time() - max by (tenant_id) ({LAST_ISSUED}{{{_REAL_TENANTS}}})"


def _now() -> list[Json]:
    failed, issued = (f"sum({rate(metric)})" for metric in (FAILED, ISSUED))
    active = f"count(max by (tenant_id) ({LAST_ISSUED}{{{_REAL_TENANTS}}}) > time() - 86400) or vector(0)"
    known = f"count(count by (tenant_id) ({ISSUED}{{{_REAL_TENANTS}}}))"
    firing = f'count(ALERTS{{alertname=~"Agentidp.+", alertstate="firing", {JOB}}}) or vector(0)'
    return [
        stat(
            "Tokens issued",
            [(issued, "")],
            unit=TOKENS_PER_SECOND,
            what="Tokens issued by all tenants.",
            window=RATE_WINDOW,
        ),
        stat(
            "Failed requests",
            [(failure_ratio(failed, issued), "")],
            unit="percentunit",
            what="Token requests that failed, of all token requests.",
            window=RATE_WINDOW,
            limits=thresholds((0.05, "orange"), (0.2, "red")),
            decimals=1,
        ),
        stat(
            "Tenants",
            [(active, "active"), (known, "known")],
            unit="short",
            what="Tenants whose newest token is younger than 24 hours, and all that have a series of their own.",
            window="24 hours before the newest scrape",
        ),
        stat(
            "Active agents",
            [(f"sum({gauge(ACTIVE_AGENTS)})", "")],
            unit="short",
            what="Agents with at least one token.",
            window="the current hour and the 23 before it",
        ),
        stat(
            "Tokens this month",
            [(f"sum({gauge(MONTH)})", "")],
            unit="short",
            what="Tokens issued by all tenants, exactly as counted in the store.",
            window="the calendar month so far",
        ),
        stat(
            "Alerts firing",
            [(firing, "")],
            unit="short",
            what="Firing alerts of this service; the time lines below mark them. docs/alerts.md says what to do.",
            window=NOW,
            limits=thresholds((1, "red")),
        ),
    ]


def _issuance() -> list[Json]:
    # The same ten all along the range: without "@ end()" each point would have its own ten.
    largest = f"topk(10, {by_tenant(increase(ISSUED, _REAL_TENANTS, modifier=' @ end()'))})"
    return [
        timeseries(
            "Tokens per second",
            [
                (f"sum({rate(ISSUED)})", "issued"),
                (f"sum({rate(FAILED)})", "failed"),
                (f"sum({expected('expected')}) / 300", "expected"),
            ],
            unit=TOKENS_PER_SECOND,
            what="All tenants. Expected: what the detector expects of the current 5 minutes, from earlier weeks.",
            window=RATE_WINDOW,
            overrides=[
                override("failed", color={"fixedColor": "red", "mode": "fixed"}),
                override(
                    "expected",
                    color={"fixedColor": "text", "mode": "fixed"},
                    custom__lineStyle={"dash": [8, 8], "fill": "dash"},
                    custom__fillOpacity=0,
                ),
            ],
        ),
        timeseries(
            "Ten largest tenants",
            [(f"{by_tenant(rate(ISSUED))} and {largest}", "{{tenant_id}}")],
            unit=TOKENS_PER_SECOND,
            what="The tenants that were issued most tokens in the time range.",
            window=RATE_WINDOW,
        ),
    ]


def _tenants() -> list[tuple[int, list[Json]]]:
    real = {"selector": _REAL_TENANTS}
    issued, failed = (by_tenant(increase(metric, **real)) for metric in (ISSUED, FAILED))
    month = by_tenant(gauge(MONTH, **real))
    share = f"max by (tenant_id) ({gauge(TOP_AGENT, **real)} and {gauge(MONTH, **real)} >= 100)"
    agents = by_tenant(gauge(ACTIVE_AGENTS, **real))
    oldest = f"topk(20, {_LAST_TOKEN_AGE})"
    expected_hourly = f"12 * {by_tenant(expected('expected', **real))}"
    spike, silence = (f"max by (tenant_id) ({gauge(score, **real)})" for score in (SPIKE_SCORE, SILENCE_SCORE))
    return [
        (
            9,
            [
                table(
                    "Largest tenants",
                    [
                        ("Tokens", f"topk(20, {issued})"),
                        ("Failed", f"{failure_ratio(failed, issued)} and topk(20, {issued})"),
                        ("Active agents", f"{agents} and topk(20, {issued})"),
                        ("This month", f"{month} and topk(20, {issued})"),
                    ],
                    unit="short",
                    what="The 20 tenants with most tokens in the time range (estimated from scrapes), the failed share"
                    " of their requests, agents of the last 24 hours, exact tokens of the calendar month.",
                    window="the time range",
                    overrides=[
                        override("Tokens", decimals=0),
                        override(
                            "Failed",
                            unit="percentunit",
                            decimals=1,
                            thresholds=thresholds((0.05, "orange"), (0.2, "red")),
                            custom__cellOptions={"type": "color-text"},
                        ),
                    ],
                    sort_by="Tokens",
                ),
                bar_gauge(
                    "Nearest to a spike",
                    (f"topk(10, {spike})", "{{tenant_id}}"),
                    unit="percentunit",
                    what="The highest spike score of the tenant's agents; 100 % is the limit, AgentidpTokenSpike begins"
                    " there.",
                    window="the detector's, as of its last look",
                    limits=thresholds((0.7, "orange"), (1, "red")),
                ),
            ],
        ),
        (
            9,
            [
                table(
                    "Longest silent tenants",
                    [
                        ("Last token", oldest),
                        ("Expected an hour", f"{expected_hourly} and {oldest}"),
                        ("Silence", f"{silence} and {oldest}"),
                        ("This month", f"{month} and {oldest}"),
                    ],
                    unit="short",
                    what="The 20 tenants whose newest token is oldest, the tokens an hour that are expected now,"
                    " and how unusual the silence is: 100 % is the limit of AgentidpTenantSilent.",
                    window=NOW,
                    overrides=[
                        override(
                            "Last token",
                            unit="s",
                            decimals=0,
                            thresholds=thresholds((3600, "orange"), (86400, "red")),
                            custom__cellOptions={"type": "color-text"},
                        ),
                        override("Expected an hour", decimals=0),
                        override("Silence", unit="percentunit", decimals=0),
                    ],
                    sort_by="Last token",
                ),
                table(
                    "Dominated by one agent",
                    [
                        ("Largest agent's share", f"topk(20, {share})"),
                        ("This month", f"{month} and topk(20, {share})"),
                        ("Active agents", f"{agents} and topk(20, {share})"),
                    ],
                    unit="short",
                    what="Tenants with at least 100 tokens this month, by the share of their largest agent; a large"
                    " one raises AgentidpAgentDominates.",
                    window="the calendar month so far",
                    overrides=[
                        override(
                            "Largest agent's share",
                            unit="percentunit",
                            decimals=1,
                            thresholds=thresholds((0.6, "orange"), (0.8, "red")),
                            custom__cellOptions={"type": "color-text"},
                        )
                    ],
                    sort_by="Largest agent's share",
                ),
            ],
        ),
    ]


def fleet(datasource_uid: str, datasource_name: str) -> Json:
    """The fleet dashboard."""
    figures = health()
    return dashboard(
        FLEET_UID,
        "Token issuance: fleet",
        "All tenants: issuance, failures, spikes, silence, dominance; and whether the service itself is well. UTC.",
        time_from="now-24h",
        variables=[
            datasource_variable(datasource_uid, datasource_name),
            variable("job", "Job", "label_values(agentidp_analytics_up, job)", multi=True),
        ],
        annotations=[alert_annotation(JOB, "{{tenant_id}}")],
        links=[dashboard_link("One tenant", TENANT_UID)],
        panels=lay_out(
            [
                ("Now", [(4, _now())]),
                ("Issuance", [(9, _issuance())]),
                ("Tenants by rank", _tenants()),
                (
                    "Exporter and ingest",
                    [(4, figures[:4]), (4, figures[4:]), (8, ingest()), (8, requests())],
                ),
            ]
        ),
    )
