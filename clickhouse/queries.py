"""The three questions, over rollups for slots that are clean and over raw events for the few that are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple

from clickhouse.connection import Connection
from clickhouse.marks import Segments, day_start
from clickhouse.rollups import COUNTED_EVENTS
from clickhouse.tenant import TenantId

# Marks are read before the rollups, never after: a slot whose recompute ends between the two reads is then read
# from raw events (right) instead of from rollups as they were before it (wrong).
_DIRTY_SLOTS: Final = """
SELECT DISTINCT toUnixTimestamp(slot) FROM marks FINAL
WHERE tenant_id = {tenant:String} AND slot >= toDateTime({since:UInt32}, 'UTC')
    AND slot < toDateTime({until:UInt32}, 'UTC') AND open != 0"""

# Of the very types of the columns: what has to be computed from a parameter is computed for every row.
_DIRTY: Final = "{dirty:Array(DateTime('UTC'))}"
_DIRTY_DAYS: Final = "{dirty_days:Array(Date)}"

_LIVE_TAIL: Final = COUNTED_EVENTS.replace(
    "{where}",
    f"tenant_id = {{tenant:String}} AND toStartOfFifteenMinutes(issued_at) IN {_DIRTY}",
)

_CLEAN_SLOTS: Final = f"""
    SELECT slot, issued FROM tenant_slot FINAL
    WHERE tenant_id = {{tenant:String}} AND slot >= toDateTime({{since:UInt32}}, 'UTC')
        AND slot < toDateTime({{until:UInt32}}, 'UTC') AND slot NOT IN {_DIRTY}"""

_ALL_SLOTS: Final = f"""{_CLEAN_SLOTS}
    UNION ALL
    SELECT slot, countIf(success) FROM ({_LIVE_TAIL}) GROUP BY slot"""

_CLEAN_DAYS: Final = f"""
    SELECT agent_id AS agent, issued FROM agent_day FINAL
    WHERE tenant_id = {{tenant:String}} AND day >= toDate(toDateTime({{since:UInt32}}, 'UTC'))
        AND day < toDate(toDateTime({{until:UInt32}}, 'UTC')) AND day NOT IN {_DIRTY_DAYS}"""

_ALL_DAYS: Final = f"""{_CLEAN_DAYS}
    UNION ALL
    SELECT agent_id, issued FROM agent_slot FINAL
    WHERE tenant_id = {{tenant:String}} AND toDate(slot) IN {_DIRTY_DAYS} AND slot NOT IN {_DIRTY}
    UNION ALL
    SELECT counted_agent, countIf(success) FROM ({_LIVE_TAIL}) GROUP BY counted_agent"""


class _Question(NamedTuple):
    """A statement for a tenant without dirty slots, and one for a tenant with some."""

    clean: str
    with_tail: str

    @classmethod
    def over(cls, statement: str, clean: str, with_tail: str) -> _Question:
        return cls(statement.replace("{rollup}", clean), statement.replace("{rollup}", with_tail))


_TREND: Final = _Question.over(
    "SELECT toDate(slot) AS day, sum(issued) AS count FROM ({rollup}) GROUP BY day", _CLEAN_SLOTS, _ALL_SLOTS
)
# toDayOfWeek has Monday 1 ... Sunday 7; the contract has Sunday 0.
_ACTIVITY: Final = _Question.over(
    "SELECT toDayOfWeek(slot) % 7 AS dow, toHour(slot) AS hour, sum(issued) AS count FROM ({rollup}) "
    "GROUP BY dow, hour HAVING count > 0 ORDER BY dow, hour",
    _CLEAN_SLOTS,
    _ALL_SLOTS,
)
_AGENTS: Final = _Question.over(
    "SELECT agent, sum(issued) AS count FROM ({rollup}) GROUP BY agent "
    # The first page comes after a count that nobody has.
    "HAVING count > 0 AND (count, {after_agent:String}) < ({after_count:UInt64}, agent) "
    "ORDER BY count DESC, agent LIMIT {limit:UInt32}",
    _CLEAN_DAYS,
    _ALL_DAYS,
)

_ALL: Final = 2**32 - 1
_BEYOND_ANY_COUNT: Final = 2**64 - 1

_TENANT_TABLES: Final = ("events", "marks", "agent_slot", "tenant_slot", "agent_day", "tenant_day", "verdicts")


class Queries:
    """Answers one tenant at a time. Blocking; may be called from many threads. Every method raises StoreError."""

    def __init__(self, connection: Connection, segments: Segments, seconds: float = 30.0) -> None:
        """`segments`: this process's own; `seconds`: how long one statement may take before the engine ends it."""
        self._connection = connection
        self._segments = segments
        self._seconds = seconds

    def trend(self, tenant: TenantId, today: date, days: int) -> list[tuple[date, int]]:
        """Tokens issued on each of the `days` UTC days that end with `today`, oldest first, zero days included."""
        first = today - timedelta(days=days - 1)
        counts = dict(self._ask(_TREND, tenant, first, today + timedelta(days=1)))
        every_day = [first + timedelta(days=offset) for offset in range(days)]
        return [(day, int(counts.get(day, 0))) for day in every_day]

    def activity(self, tenant: TenantId, today: date, days: int) -> list[tuple[int, int, int]]:
        """(day of week with Sunday 0, hour, tokens issued) over the same days, sorted, without empty cells."""
        since = today - timedelta(days=days - 1)
        cells = self._ask(_ACTIVITY, tenant, since, today + timedelta(days=1))
        return [(int(dow), int(hour), int(count)) for dow, hour, count in cells]

    def agents(
        self, tenant: TenantId, month: date, limit: int = _ALL, after: tuple[str, int] | None = None
    ) -> list[tuple[str, int]]:
        """(agent, tokens issued) in the UTC calendar month of `month`, largest first, ties by agent id.

        At most `limit` of them, the first ones or those that come after the pair `after`.
        """
        first = month.replace(day=1)
        after_agent, after_count = after or ("", _BEYOND_ANY_COUNT)
        page = {"limit": limit, "after_agent": after_agent, "after_count": after_count}
        totals = self._ask(_AGENTS, tenant, first, (first + timedelta(days=32)).replace(day=1), page)
        return [(str(agent), int(count)) for agent, count in totals]

    def _ask(
        self, question: _Question, tenant: TenantId, since: date, until: date, page: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        fence = {
            "additional_table_filters": tenant_fence(tenant),
            # Nobody waits longer for it; a thread that goes on would be lost to others.
            "max_execution_time": math.ceil(self._seconds),
        }
        parameters: dict[str, Any] = {"tenant": str(tenant), "since": day_start(since), "until": day_start(until)}
        dirty = self._segments.dirty(str(tenant), parameters["since"], parameters["until"])
        if dirty is None:
            dirty = [slot for (slot,) in self._connection.rows(_DIRTY_SLOTS, parameters, fence)]
        days = sorted({datetime.fromtimestamp(slot, UTC).date() for slot in dirty})
        statement = question.with_tail if dirty else question.clean
        return self._connection.rows(
            statement, {**parameters, **(page or {}), "dirty": dirty, "dirty_days": days}, fence
        )


def tenant_fence(tenant: TenantId) -> str:
    """The value of `additional_table_filters` that hides every other tenant's rows from a statement.

    A second fence: it holds when a query forgets its WHERE. The engine takes no parameters here, so the text is
    built; a TenantId has no character that could end the literal. Raises TypeError for any other string.
    """
    if not isinstance(tenant, TenantId):
        raise TypeError("a question needs a TenantId: an unchecked tenant could be somebody else's")
    condition = f"tenant_id = '{tenant}'".replace("'", "\\'")
    return "{" + ", ".join(f"'{table}': '{condition}'" for table in _TENANT_TABLES) + "}"
