"""The dashboard of one tenant."""

from __future__ import annotations

from typing import Final

from grafana.panels import (
    FLEET_UID,
    TENANT_UID,
    TOKENS_PER_SECOND,
    Json,
    alert_annotation,
    daily_bars,
    dashboard,
    dashboard_link,
    datasource_variable,
    lay_out,
    matrix,
    override,
    stat,
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
    TENANT_ALERTS,
    TOP_AGENT,
    expected,
    failure_ratio,
    gauge,
    increase,
    rate,
)

_TENANT: Final = f'{JOB}, tenant_id="$tenant"'


_WEEKDAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_TREND_DAYS: Final = 30
_HEATMAP_WEEKS: Final = 4


def _activity() -> str:
    """Tokens by (weekday, hour) of whole weeks. Half an hour back, a window's end lies in the hour that it covers."""
    middle = "vector(time() - 1800)"
    hourly = f"sum({increase(ISSUED, _TENANT, '1h')})"
    cells = (
        f'{hourly} * on () group_left (hour) count_values("hour", hour({middle}))'
        f' * on () group_left (weekday) count_values("weekday", day_of_week({middle}))'
    )
    # Two digits: the columns are sorted as text.
    return f'label_replace(sum_over_time(({cells})[{7 * _HEATMAP_WEEKS}d:1h]), "hour", "0$1", "hour", "(.)")'


def _figures() -> list[Json]:
    failed, issued = (f"sum({increase(metric, _TENANT)})" for metric in (FAILED, ISSUED))
    return [
        stat(
            "Tokens this month",
            [(f"sum({gauge(MONTH, _TENANT)})", "")],
            unit="short",
            what="Tokens issued to the tenant, exactly as counted in the store.",
            window="the calendar month so far",
        ),
        stat(
            "Largest agent's share",
            [(f"max({gauge(TOP_AGENT, _TENANT)})", "")],
            unit="percentunit",
            what="The largest agent's share of the month's tokens; always 100 % with a single agent. GET"
            " /api/v1/analytics/agents names it.",
            window="the calendar month so far",
            limits=thresholds((0.6, "orange"), (0.8, "red")),
            decimals=1,
        ),
        stat(
            "Active agents",
            [(f"sum({gauge(ACTIVE_AGENTS, _TENANT)})", "")],
            unit="short",
            what="Agents with at least one token.",
            window="the current hour and the 23 before it",
        ),
        stat(
            "Failed requests",
            [(failure_ratio(failed, issued), "")],
            unit="percentunit",
            what="Token requests that failed, of all token requests.",
            window="the time range",
            limits=thresholds((0.05, "orange"), (0.2, "red")),
            decimals=1,
        ),
        stat(
            "Last token",
            [(f"time() - max({gauge(LAST_ISSUED, _TENANT)})", "")],
            unit="s",
            what="Age of the tenant's newest token.",
            window=NOW,
            limits=thresholds((3600, "orange"), (86400, "red")),
        ),
    ]


def _against_last_week() -> Json:
    return timeseries(
        "Rate now against the same hour last week",
        [
            (f"sum({rate(ISSUED, _TENANT)})", "now"),
            (f"sum({rate(ISSUED, _TENANT, modifier=' offset 1w')})", "a week ago"),
            (f"sum({expected('expected', _TENANT)}) / 300", "expected"),
            (f"sum({expected('lower', _TENANT)}) / 300", "at least"),
            (f"sum({expected('upper', _TENANT)}) / 300", "at most"),
        ],
        unit=TOKENS_PER_SECOND,
        what="Expected, at least and at most: what the detector expects of each 5 minutes. Beyond them is unusual;"
        " whether it is an alert, AgentidpTokenSpike or AgentidpTenantSilent, is decided on each agent too.",
        window=RATE_WINDOW,
        overrides=[
            override("a week ago", color={"fixedColor": "text", "mode": "fixed"}, custom__fillOpacity=0),
            override(
                "expected",
                color={"fixedColor": "green", "mode": "fixed"},
                custom__lineStyle={"dash": [8, 8], "fill": "dash"},
                custom__fillOpacity=0,
            ),
            *(
                override(
                    bound,
                    color={"fixedColor": "red", "mode": "fixed"},
                    custom__lineStyle={"dash": [2, 6], "fill": "dash"},
                    custom__fillOpacity=0,
                )
                for bound in ("at least", "at most")
            ),
        ],
    )


def _lines() -> list[Json]:
    return [
        timeseries(
            "Failed requests per second",
            [(f"sum({rate(FAILED, _TENANT)})", "failed")],
            unit="reqps",
            what="Token requests of the tenant's agents that failed.",
            window=RATE_WINDOW,
        ),
        timeseries(
            "Agents",
            [(f"sum({gauge(ACTIVE_AGENTS, _TENANT)})", "active agents")],
            unit="short",
            what="Agents with at least one token.",
            window="the hour of each point and the 23 before it",
        ),
        timeseries(
            "Largest agent's share over time",
            [(f"max({gauge(TOP_AGENT, _TENANT)})", "share")],
            unit="percentunit",
            what="The largest agent's share of the month's tokens; starts over with each month.",
            window="the calendar month of each point",
        ),
        timeseries(
            "Alerts that last",
            [(f"sum by (kind, severity) ({gauge(TENANT_ALERTS, _TENANT)})", "{{kind}}, {{severity}}")],
            unit="short",
            what="Alerts of the tenant by kind and severity. GET /api/v1/analytics/alerts has each of them.",
            window=NOW,
        ),
    ]


def tenant(datasource_uid: str, datasource_name: str) -> Json:
    """The tenant dashboard."""
    trend = daily_bars(
        "Tokens issued per day",
        f"sum({increase(ISSUED, _TENANT, '1d', ' offset -1d')})",
        "tokens",
        unit="short",
        what=f"The last {_TREND_DAYS} days whatever the time range is, today's bar so far; estimated from scrapes. GET"
        " /api/v1/analytics/tokens has the exact counts.",
        window="the calendar day that starts at each bar",
        days=_TREND_DAYS,
    )
    heatmap = matrix(
        "Tokens by weekday and hour",
        _activity(),
        row="weekday",
        column="hour",
        row_names=_WEEKDAYS,
        what=f"Tokens issued in each hour of the week, summed over the last {_HEATMAP_WEEKS} weeks, whole hours only;"
        " columns are hours of the day.",
        window=f"{_HEATMAP_WEEKS} weeks before the end of the time range",
    )
    return dashboard(
        TENANT_UID,
        "Token issuance: tenant",
        "One tenant: trend, present rate against last week, activity by weekday and hour, agents, failures. UTC.",
        time_from="now-7d",
        variables=[
            datasource_variable(datasource_uid, datasource_name),
            variable("job", "Job", "label_values(agentidp_analytics_up, job)", multi=True),
            variable(
                "tenant",
                "Tenant",
                'label_values(agentidp_tenant_month_tokens{job=~"$job"}, tenant_id)',
                regex="/^(?!_other$).*$/",
            ),
        ],
        annotations=[alert_annotation('job=~"$job", tenant_id="$tenant"', "{{severity}}")],
        links=[dashboard_link("All tenants", FLEET_UID)],
        panels=lay_out(
            [
                ("Figures", [(4, _figures())]),
                ("Trend", [(9, [trend, _against_last_week()])]),
                ("Activity", [(10, [heatmap])]),
                ("Agents, failures, alerts", [(8, _lines())]),
            ]
        ),
    )
