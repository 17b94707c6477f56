"""Panels about the service itself: its exporter, ingest and API."""

from __future__ import annotations

from typing import Final

from grafana.panels import Json, stat, thresholds, timeseries
from grafana.queries import JOB, NOW, RATE_WINDOW

_YES_NO: Final[list[Json]] = [
    {
        "options": {
            "0": {"color": "red", "index": 0, "text": "no"},
            "1": {"color": "green", "index": 1, "text": "yes"},
        },
        "type": "value",
    }
]


def _own(metric: str) -> str:
    return f"agentidp_analytics_{metric}{{{JOB}}}"


def _own_rate(metric: str) -> str:
    return f"rate({_own(metric)}[$__rate_interval])"


def _quantile(quantile: float, histogram: str, by: str = "le") -> str:
    return f"histogram_quantile({quantile}, sum by ({by}) ({_own_rate(histogram + '_bucket')}))"


def health() -> list[Json]:
    """Single figures: exporter, ingest, store."""
    return [
        stat(
            "Exporter reads the store",
            [(_own("up"), "{{instance}}")],
            unit="bool_yes_no",
            what="Whether the last refresh from the store worked.",
            window=NOW,
            mappings=_YES_NO,
        ),
        stat(
            "Snapshot age",
            [(f"max({_own('snapshot_age_seconds')})", "")],
            unit="s",
            what="How old the tenant figures are; over 5 minutes raises AgentidpSnapshotStale.",
            window=NOW,
            limits=thresholds((60, "orange"), (300, "red")),
        ),
        stat(
            "Last event accepted",
            [(f"time() - max({_own('ingest_last_accepted_timestamp_seconds')} > 0)", "")],
            unit="s",
            what="Age of the last acknowledged event; empty if there was none since the start.",
            window=NOW,
            limits=thresholds((900, "orange")),
        ),
        stat(
            "Tenants without a series",
            [(f"max({_own('dropped_tenants')})", "")],
            unit="short",
            what="Tenants beyond --max-tenants, summed as _other: no alert watches them.",
            window=NOW,
            limits=thresholds((1, "orange")),
        ),
        stat(
            "Counts that differ",
            [(f"max({_own('verify_differences')})", "")],
            unit="short",
            what="Tenant-days of the last daily check whose rollups differ from a recount of the raw events. Anything"
            " but 0 is a defect: run agentidp-analytics verify.",
            window="the last daily check",
            limits=thresholds((1, "red")),
        ),
        stat(
            "Last check",
            [(f"time() - max({_own('verify_last_run_timestamp_seconds')} > 0)", "")],
            unit="s",
            what="Age of the last daily check; empty if there was none yet.",
            window=NOW,
            limits=thresholds((2 * 86400, "orange")),
        ),
        stat(
            "Version",
            [(f"count by (version) ({_own('build_info')})", "{{version}}")],
            unit="string",
            what="Versions that run now.",
            window=NOW,
            names=True,
        ),
        stat(
            "Tenants in the store",
            [(f"max({_own('tenants')})", "")],
            unit="short",
            what="All tenants, those without a series of their own too.",
            window=NOW,
        ),
    ]


def ingest() -> list[Json]:
    """How events reach the store."""
    return [
        timeseries(
            "Events",
            [
                (f"sum({_own_rate('ingest_events_accepted_total')})", "accepted"),
                (f"sum by (reason) ({_own_rate('ingest_events_rejected_total')})", "rejected: {{reason}}"),
                (f"sum({_own_rate('duplicates_found_total')})", "duplicates"),
            ],
            unit="cps",
            what="Events acknowledged (duplicates included), refused by reason, and found to be duplicates.",
            window=RATE_WINDOW,
        ),
        timeseries(
            "Events in a commit",
            [(_quantile(0.5, "commit_events"), "median"), (_quantile(0.99, "commit_events"), "99 %")],
            unit="short",
            what="How many events share one durable write, estimated from histogram buckets.",
            window=RATE_WINDOW,
        ),
        timeseries(
            "Store durations",
            [
                (_quantile(0.99, "commit_duration_seconds"), "commit, 99 %"),
                (_quantile(0.99, "recompute_duration_seconds"), "recompute, 99 %"),
                (f"max({_own('refresh_duration_seconds')})", "exporter refresh"),
            ],
            unit="s",
            what="Time of a durable write, of a recompute of the rollups, and of the exporter's last refresh.",
            window=RATE_WINDOW,
        ),
        timeseries(
            "Slots to recompute",
            [(f"max({_own('dirty_slots')})", "slots")],
            unit="short",
            what="15-minute slots that are answered from raw events until the rollups have them.",
            window=NOW,
        ),
    ]


def requests() -> list[Json]:
    """How callers are answered."""
    return [
        timeseries(
            "Requests",
            [(f"sum by (code) ({_own_rate('http_requests_total')})", "{{code}}")],
            unit="reqps",
            what="Answers of the query API and the ingest endpoint by status code.",
            window=RATE_WINDOW,
        ),
        timeseries(
            "Request duration",
            [(_quantile(0.99, "http_request_duration_seconds", "le, route"), "{{route}}")],
            unit="s",
            what="The 99 % quantile by route, estimated from histogram buckets.",
            window=RATE_WINDOW,
        ),
        timeseries(
            "Refused credentials",
            [(f"sum by (reason) ({_own_rate('auth_failures_total')})", "{{reason}}")],
            unit="reqps",
            what="Requests refused for their credentials by reason; empty if there was none since the start.",
            window=RATE_WINDOW,
        ),
        timeseries(
            "Exporter refreshes",
            [
                (f"sum({_own_rate('refreshes_total')})", "refreshes"),
                (f"sum({_own_rate('refresh_failures_total')})", "failed"),
            ],
            unit="cps",
            what="Readings of the store for the exporter, and those that failed.",
            window=RATE_WINDOW,
        ),
    ]
