"""One agent of a tenant, closely: its days, where its tokens go, and how many of them it did not need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from clickhouse.connection import Connection
from clickhouse.marks import day_start
from clickhouse.queries import tenant_fence
from clickhouse.tenant import TenantId

MOST: Final = 20  # values of a kind that are told

# Every event that counts for the agent, once: those that it shares with another agent count where the rollups count
# them, under the smallest (outcome, agent_id).
_COUNTED: Final = """
SELECT issued_at, event_id, content.1 AS outcome, content.3 AS grant_type, content.4 AS scope, content.5 AS client_ip,
    content.6 AS user_agent, content.7 AS lifetime
FROM
(
    SELECT issued_at, event_id,
        min((outcome, agent_id, grant_type, scope, client_ip, user_agent, expires_in)) AS content
    FROM events
    WHERE tenant_id = {tenant:String} AND issued_at >= toDateTime64({since:UInt32}, 3, 'UTC')
        AND issued_at < toDateTime64({until:UInt32}, 3, 'UTC') AND (issued_at, event_id) IN
        (
            SELECT issued_at, event_id FROM events
            WHERE tenant_id = {tenant:String} AND agent_id = {agent:String}
                AND issued_at >= toDateTime64({since:UInt32}, 3, 'UTC')
                AND issued_at < toDateTime64({until:UInt32}, 3, 'UTC')
        )
    GROUP BY issued_at, event_id
)
WHERE content.2 = {agent:String}"""

_DAYS: Final = f"""
SELECT toDate(issued_at) AS day, countIf(outcome = 'success'), countIf(outcome = 'failure')
FROM ({_COUNTED}) GROUP BY day"""

_SEEN: Final = """
SELECT toUnixTimestamp64Milli(min(issued_at)), toUnixTimestamp64Milli(max(issued_at)) FROM events
WHERE tenant_id = {tenant:String} AND agent_id = {agent:String} HAVING count() > 0"""

# As in agent_network: /24 of IPv4, /48 of IPv6.
_VALUES: Final = f"""
SELECT kind, value, count() AS tokens, toUnixTimestamp64Milli(min(issued_at)), toUnixTimestamp64Milli(max(issued_at))
FROM
(
    SELECT issued_at, multiIf(
        isIPv4String(client_ip), concat(substringIndex(client_ip, '.', 3), '.0/24'),
        isIPv6String(client_ip), concat(toString(IPv6CIDRToRange(toIPv6OrDefault(client_ip), 48).1), '/48'),
        '') AS network, user_agent, grant_type, scope
    FROM ({_COUNTED}) WHERE outcome = 'success'
)
ARRAY JOIN ['networks', 'userAgents', 'grantTypes', 'scopes'] AS kind,
    [network, toString(user_agent), toString(grant_type), toString(scope)] AS value
WHERE value != ''
GROUP BY kind, value ORDER BY kind, tokens DESC, value LIMIT {MOST} BY kind"""

_LIFETIMES: Final = f"""
SELECT countIf(lifetime > 0), countIf(lifetime > 0 AND ms + 1000 * lifetime > {{now_ms:UInt64}}),
    countIf(lifetime > 0 AND is_held) / countIf(lifetime > 0)
FROM
(
    SELECT toUnixTimestamp64Milli(issued_at) AS ms, toInt64(lifetime) AS lifetime,
        ms < max(ms + 500 * lifetime) OVER earlier AS is_held
    FROM ({_COUNTED}) WHERE outcome = 'success'
    WINDOW earlier AS
        (PARTITION BY scope ORDER BY issued_at, event_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)"""


@dataclass(frozen=True, slots=True)
class Used:
    """A network, user agent, grant type or scope, and its tokens in the days asked for; times in Unix ms."""

    value: str
    count: int
    first_seen: int
    last_seen: int


@dataclass(frozen=True, slots=True)
class AgentDetail:
    """Times in Unix milliseconds. `outstanding` and `wasted` are None where no token says how long it lives."""

    first_seen: int
    last_seen: int
    days: list[tuple[date, int, int]]  # (UTC day, issued, failed), oldest first, zero days included
    outstanding: int | None  # tokens of the days asked for that have not expired
    wasted: float | None  # share issued while an earlier one of the same scope had over half its lifetime left
    used: dict[str, list[Used]]  # networks, userAgents, grantTypes, scopes: largest first, at most `MOST`

    @property
    def issued(self) -> int:
        """Tokens issued in the days asked for."""
        return sum(issued for _, issued, _ in self.days)

    @property
    def failed(self) -> int:
        """Requests that failed in the days asked for."""
        return sum(failed for _, _, failed in self.days)


class AgentDetails:
    """Reads the events themselves. Blocking; may be called from many threads; raises StoreError."""

    def __init__(self, connection: Connection, seconds: float = 30.0) -> None:
        """`seconds`: how long one statement may take before the engine ends it."""
        self._connection = connection
        self._seconds = seconds

    def of(self, tenant: TenantId, agent: str, now: datetime, days: int) -> AgentDetail | None:
        """The `days` UTC days that end with today; None for an agent that the tenant never had."""
        first = now.date() - timedelta(days=days - 1)
        parameters = {
            "tenant": str(tenant),
            "agent": agent,
            "since": day_start(first),
            "until": day_start(now.date() + timedelta(days=1)),
            "now_ms": int(now.timestamp() * 1000),
        }
        seen = self._ask(_SEEN, tenant, parameters)
        if not seen:
            return None
        counts = {day: (int(issued), int(failed)) for day, issued, failed in self._ask(_DAYS, tenant, parameters)}
        every_day = [first + timedelta(days=offset) for offset in range(days)]
        with_lifetime, outstanding, wasted = self._ask(_LIFETIMES, tenant, parameters)[0]
        used: dict[str, list[Used]] = {"networks": [], "userAgents": [], "grantTypes": [], "scopes": []}
        for kind, *row in self._ask(_VALUES, tenant, parameters):
            used[kind].append(Used(*row))
        return AgentDetail(
            first_seen=int(seen[0][0]),
            last_seen=int(seen[0][1]),
            days=[(day, *counts.get(day, (0, 0))) for day in every_day],
            outstanding=int(outstanding) if with_lifetime else None,
            wasted=round(float(wasted), 4) if with_lifetime else None,
            used=used,
        )

    def _ask(self, statement: str, tenant: TenantId, parameters: dict[str, Any]) -> Sequence[tuple[Any, ...]]:
        fence = {"additional_table_filters": tenant_fence(tenant), "max_execution_time": max(1, round(self._seconds))}
        return self._connection.rows(statement, parameters, fence)


def rfc3339(unix_ms: int) -> str:
    """The moment in UTC, to the millisecond if it has any."""
    at = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds" if unix_ms % 1000 else "seconds").replace("+00:00", "Z")
