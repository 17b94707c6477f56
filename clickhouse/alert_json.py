"""Alerts and agent details as the JSON that every face of the service shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clickhouse.agent_detail import AgentDetail, Used, rfc3339
from clickhouse.alert import Alert


def alert_body(alert: Alert) -> dict[str, Any]:
    """One entry of `data` of /api/v1/analytics/alerts."""
    return {
        "id": alert.id,
        "kind": alert.kind,
        "severity": alert.severity,
        "agentId": alert.agent_id,
        "since": rfc3339(alert.since * 1000),
        "until": None if alert.until is None else rfc3339(alert.until * 1000),
        "score": alert.score,
        "threshold": alert.threshold,
        "observed": alert.observed,
        "expected": alert.expected,
        "message": alert.message,
    }


def alerts_body(days: int, alerts: Iterable[Alert]) -> dict[str, Any]:
    """What operators are told, across tenants: each entry says whose it is."""
    return {"days": days, "data": [{"tenantId": alert.tenant_id, **alert_body(alert)} for alert in alerts]}


def detail_body(tenant: str, agent: str, days: int, detail: AgentDetail) -> dict[str, Any]:
    """The body of /api/v1/analytics/agents/detail."""
    return {
        "tenantId": tenant,
        "agentId": agent,
        "days": days,
        "firstSeen": rfc3339(detail.first_seen),
        "lastSeen": rfc3339(detail.last_seen),
        "issued": detail.issued,
        "failures": detail.failed,
        "outstanding": detail.outstanding,
        "wasted": detail.wasted,
        "data": [{"date": day.isoformat(), "count": issued, "failures": failed} for day, issued, failed in detail.days],
        **{kind: [_used(entry) for entry in entries] for kind, entries in detail.used.items()},
    }


def _used(entry: Used) -> dict[str, Any]:
    return {
        "value": entry.value,
        "count": entry.count,
        "firstSeen": rfc3339(entry.first_seen),
        "lastSeen": rfc3339(entry.last_seen),
    }
