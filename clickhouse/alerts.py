"""Alerts from verdicts: bins of one kind that follow each other closely are one episode, and one alert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from clickhouse.alert import Alert
from clickhouse.connection import Connection
from clickhouse.queries import tenant_fence
from clickhouse.tenant import TenantId

# How long a kind has to be quiet before its alert is over, in seconds. What comes sooner belongs to it: a loop that
# rests for ten minutes is one incident.
_QUIET: Final = (
    "transform(kind, ['silence', 'unusual_hours', 'dominance', 'new_network', 'budget'], "
    "[600, 21600, 10800, 7200, 90000], 3600)"
)

# An alert's id is of its first bin, so no look may begin in the middle of it: each begins with a month, and with every
# month what lasts is a new alert. Those that last for ever, as a tenant's largest agent does, have a beginning too.
_ALERTS: Final = f"""
SELECT lower(hex(sipHash64(tenant_id, kind, agent_id, first))) AS id, tenant_id, kind, agent_id, first, last,
    last + 300 + quiet > {{now:UInt32}} AS lasts, worst.1, worst.2, worst.3, worst.4, worst.5
FROM
(
    SELECT tenant_id, kind, agent_id, any({_QUIET}) AS quiet,
        arrayJoin(arraySplit(
            (row, pause, turn) -> pause > quiet OR turn != 0, arraySort(groupArray(
                (toUnixTimestamp(bin), toYYYYMM(bin),
                    (transform(severity, ['page', 'ticket'], [2, 1], 0), score, observed, expected, detail)))
            ) AS rows, arrayDifference(rows.1), arrayDifference(rows.2))) AS episode,
        episode[1].1 AS first, episode[-1].1 AS last, arrayMax(episode.3) AS worst
    FROM verdicts FINAL
    WHERE score > 1 {{whose}}
        AND bin >= toDateTime(toStartOfMonth(toDateTime({{since:UInt32}} - 90000, 'UTC')), 'UTC')
    GROUP BY tenant_id, kind, agent_id
)
WHERE last + 300 + quiet >= {{since:UInt32}}
ORDER BY first DESC, id"""
_OF_TENANT: Final = _ALERTS.replace("{whose}", "AND tenant_id = {tenant:String}")
_OF_ALL: Final = _ALERTS.replace("{whose}", "")

# As `bench.detection` reports them: stretches of one severity, of all times.
_STRETCHES: Final = f"""
SELECT tenant_id, agent_id, kind, severity, episode[1], episode[-1] + 300
FROM
(
    SELECT tenant_id, agent_id, kind, severity, any({_QUIET}) AS quiet,
        arrayJoin(arraySplit((at, pause) -> pause > quiet, arraySort(groupArray(toUnixTimestamp(bin))) AS bins,
            arrayDifference(bins))) AS episode
    FROM verdicts FINAL WHERE score > 1 GROUP BY tenant_id, agent_id, kind, severity
)
ORDER BY episode[1], tenant_id, agent_id, kind"""

_SEVERITIES: Final = ("info", "ticket", "page")


def verdicts_of(connection: Connection) -> list[tuple[str, str, str, str, int, int]]:
    """Everything the detector has said: (tenant, agent, kind, severity, start of the first bin, end of the last)."""
    return [(t, a, kind, severity, int(s), int(e)) for t, a, kind, severity, s, e in connection.rows(_STRETCHES)]


class Alerts:
    """Reads what the detector has said. Blocking; may be called from many threads; raises StoreError."""

    def __init__(self, connection: Connection, seconds: float = 30.0) -> None:
        """`seconds`: how long one statement may take before the engine ends it."""
        self._connection = connection
        self._limit = {"max_execution_time": max(1, round(seconds))}

    def of_tenant(self, tenant: TenantId, since: int, now: int) -> list[Alert]:
        """The tenant's alerts that lasted at `since` or began later (Unix seconds), newest first."""
        return self._read(
            _OF_TENANT,
            {"tenant": str(tenant), "since": since, "now": now},
            {"additional_table_filters": tenant_fence(tenant), **self._limit},
        )

    def of_all(self, since: int, now: int) -> list[Alert]:
        """The same of every tenant."""
        return self._read(_OF_ALL, {"since": since, "now": now}, self._limit)

    def _read(self, sql: str, parameters: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alert]:
        return [
            Alert(
                id=id_,
                tenant_id=tenant,
                kind=kind,
                severity=_SEVERITIES[rank],
                agent_id=agent or None,
                since=int(first),
                until=None if lasts else int(last) + 300,
                score=round(score, 3),
                threshold=1.0,
                observed=round(observed, 3),
                expected=round(expected, 3),
                detail=detail,
            )
            for id_, tenant, kind, agent, first, last, lasts, rank, score, observed, expected, detail in (
                self._connection.rows(sql, parameters, settings)
            )
        ]
