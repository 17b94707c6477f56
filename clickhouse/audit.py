"""The audit: every rollup recounted from the raw events, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

from clickhouse.connection import Connection
from clickhouse.marks import day_start
from clickhouse.rollups import COUNTED_EVENTS, OPEN_MARKS

_RAW_CELLS: Final = (
    "SELECT tenant_id, slot, counted_agent AS agent, countIf(success) AS issued, countIf(NOT success) AS failed FROM ("
    + COUNTED_EVENTS.replace(
        "{where}",
        "issued_at >= toDateTime64({since:UInt32}, 3, 'UTC') AND issued_at < toDateTime64({until:UInt32}, 3, 'UTC')",
    )
    + ") GROUP BY tenant_id, slot, agent"
)
_RAW_BINS: Final = _RAW_CELLS.replace(
    "countIf(success) AS issued, countIf(NOT success) AS failed",
    "countIf(success AND intDiv(issued_at_ms, 300000) % 3 = 1) AS issued, "
    "countIf(success AND intDiv(issued_at_ms, 300000) % 3 = 2) AS failed",
)
_SLOTS_IN_RANGE: Final = "slot >= toDateTime({since:UInt32}, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')"
_DAYS_IN_RANGE: Final = (
    "day >= toDate(toDateTime({since:UInt32}, 'UTC')) AND day < toDate(toDateTime({until:UInt32}, 'UTC'))"
)
_AGENT_CELLS: Final = (
    f"SELECT tenant_id, slot, agent_id AS agent, issued, failed FROM agent_slot FINAL WHERE {_SLOTS_IN_RANGE}"
)
_AGENT_BINS: Final = _AGENT_CELLS.replace("issued, failed", "issued_5 AS issued, issued_10 AS failed")

# Both sides of a comparison as rows of (tenant, day, cell, issued, failed); what does not cancel out is a difference.
_COMPARE: Final = """
SELECT tenant_id, day, sum(wanted), sum(found) FROM
(
    SELECT tenant_id, day, sumIf(issued + failed, side = 0) AS wanted, sumIf(issued + failed, side = 1) AS found,
        sumIf(issued, side = 0) = sumIf(issued, side = 1) AND sumIf(failed, side = 0) = sumIf(failed, side = 1) AS same
    FROM (SELECT 0 AS side, * FROM ({wanted_cells}) UNION ALL SELECT 1, * FROM ({found_cells}))
    GROUP BY tenant_id, day, cell
)
GROUP BY tenant_id, day HAVING min(same) = 0 ORDER BY tenant_id, day"""


def _comparison(wanted_cells: str, found_cells: str) -> str:
    return _COMPARE.replace("{wanted_cells}", wanted_cells).replace("{found_cells}", found_cells)


_AGENT_SLOTS_BY_CELL: Final = (
    "SELECT tenant_id, toDate(slot) AS day, concat(toString(slot), agent) AS cell, issued, failed FROM ({cells})"
)
_COMPARISONS: Final = {
    "agent_slot": _comparison(
        _AGENT_SLOTS_BY_CELL.replace("{cells}", _RAW_CELLS), _AGENT_SLOTS_BY_CELL.replace("{cells}", _AGENT_CELLS)
    ),
    # Tokens of the minutes 5 to 9 and 10 to 14 stand where the others have issued and failed.
    "agent_slot's bins": _comparison(
        _AGENT_SLOTS_BY_CELL.replace("{cells}", _RAW_BINS), _AGENT_SLOTS_BY_CELL.replace("{cells}", _AGENT_BINS)
    ),
    "tenant_slot": _comparison(
        f"SELECT tenant_id, toDate(slot) AS day, toString(slot) AS cell, issued, failed FROM ({_AGENT_CELLS})",
        "SELECT tenant_id, toDate(slot) AS day, toString(slot) AS cell, issued, failed FROM tenant_slot FINAL "
        f"WHERE {_SLOTS_IN_RANGE}",
    ),
    "agent_day": _comparison(
        f"SELECT tenant_id, toDate(slot) AS day, agent AS cell, issued, failed FROM ({_AGENT_CELLS})",
        "SELECT tenant_id, day, agent_id AS cell, issued, failed FROM agent_day FINAL " + f"WHERE {_DAYS_IN_RANGE}",
    ),
    "tenant_day": _comparison(
        f"SELECT tenant_id, toDate(slot) AS day, '' AS cell, issued, failed FROM ({_AGENT_CELLS})",
        f"SELECT tenant_id, day, '' AS cell, issued, failed FROM tenant_day FINAL WHERE {_DAYS_IN_RANGE}",
    ),
}

# The exporter may lag behind the rollups, but a counter above what can be counted has lost events under it.
_COUNTERS_ABOVE: Final = """
SELECT tenant_id, sum(countable), max(shown) FROM
(
    SELECT tenant_id, sum(issued) AS countable, 0 AS shown FROM tenant_day FINAL GROUP BY tenant_id
    UNION ALL SELECT tenant_id, max(issued), 0 FROM removals GROUP BY tenant_id, removal_id HAVING max(done) = 2
    UNION ALL SELECT tenant_id, 0, max(issued) FROM counters WHERE tenant_id != '_other' GROUP BY tenant_id
)
GROUP BY tenant_id HAVING max(shown) > sum(countable) ORDER BY tenant_id"""

_CONFLICTS: Final = """
SELECT tenant_id, event_id, uniqExact(issued_at) AS times, uniqExact(agent_id) AS agents, uniqExact(outcome) AS outcomes
FROM events
WHERE issued_at >= toDateTime64({since:UInt32}, 3, 'UTC') AND issued_at < toDateTime64({until:UInt32}, 3, 'UTC')
GROUP BY tenant_id, event_id HAVING times > 1 OR agents > 1 OR outcomes > 1
ORDER BY tenant_id, event_id LIMIT {limit:UInt32}"""

_DIRTY_DAYS: Final = f"SELECT DISTINCT tenant_id, toDate(slot) FROM ({OPEN_MARKS})"

_RANGE: Final = "SELECT toDate(min(issued_at)), toDate(max(issued_at)) FROM events HAVING count() > 0"
_ROLLUP_RANGE: Final = "SELECT min(day), max(day) FROM tenant_day HAVING count() > 0"

MAX_CONFLICTS: Final = 1000
_GROUP_ON_DISK: Final = {"max_bytes_before_external_group_by": 1024**3, "optimize_aggregation_in_order": 1}


class Difference(NamedTuple):
    """A tenant-day of a rollup that is not what its events say; `day` is None for an exporter counter."""

    table: str
    tenant_id: str
    day: date | None
    wanted: int
    found: int


class Conflict(NamedTuple):
    """An event id that came with more than one time, agent or outcome."""

    tenant_id: str
    event_id: str
    times: int
    agents: int
    outcomes: int


@dataclass
class Report:
    """What an audit found; `unsettled` tenant-days were being written and were left out."""

    differences: list[Difference] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    days: int = 0
    unsettled: int = 0


def verify(
    connection: Connection,
    since: date | None = None,
    until: date | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Compares raw events and rollups of the UTC days from `since` up to and including `until` (None: all).

    A month at a time, in bounded memory; `progress` hears (months done, months in all). Call it when the upkeep has
    settled: days with marks are left out. Raises StoreError.
    """
    report = Report()
    held = connection.rows(_RANGE) + connection.rows(_ROLLUP_RANGE)
    if held:
        # No further than there is anything: a day may be asked for that the engine has no number for.
        first = max(since or date.min, min(row[0] for row in held))
        last = min(until or date.max, max(row[1] for row in held))
        months = list(_months(first, last))
        for number, (start, end) in enumerate(months, start=1):
            _compare(connection, start, end, report)
            report.days += (end - start).days
            progress(number, len(months))
        report.conflicts = _conflicts(connection, first, last) if months else []
    if since is None and until is None:
        report.differences += [
            Difference("exporter counter", tenant, None, int(wanted), int(found))
            for tenant, wanted, found in connection.rows(_COUNTERS_ABOVE)
        ]
    return report


def _compare(connection: Connection, start: date, end: date, report: Report) -> None:
    bounds = {"since": day_start(start), "until": day_start(end)}
    dirty = _dirty(connection)
    found = [
        Difference(table, tenant, day, int(wanted), int(counted))
        for table, statement in _COMPARISONS.items()
        for tenant, day, wanted, counted in connection.rows(statement, bounds, _GROUP_ON_DISK)
    ]
    dirty |= _dirty(connection)  # an event may have come in between the two sides of a comparison
    report.differences += [entry for entry in found if (entry.tenant_id, entry.day) not in dirty]
    report.unsettled += sum(1 for _, day in dirty if start <= day < end)


def _conflicts(connection: Connection, first: date, last: date) -> list[Conflict]:
    """Over the whole range at once: the two times of an id may lie in two months. At most `MAX_CONFLICTS`."""
    bounds = {"since": day_start(first), "until": day_start(last + timedelta(days=1)), "limit": MAX_CONFLICTS}
    rows = connection.rows(_CONFLICTS, bounds, {"max_bytes_before_external_group_by": 1024**3})
    return [Conflict(*row) for row in rows]


def _dirty(connection: Connection) -> set[tuple[str, date]]:
    return {(tenant, day) for tenant, day in connection.rows(_DIRTY_DAYS)}


def _months(first: date, last: date) -> Sequence[tuple[date, date]]:
    """Half-open stretches of at most a calendar month that cover first...last."""
    stretches = []
    start, stop = first, last + timedelta(days=1)
    while start < stop:
        end = min((start.replace(day=1) + timedelta(days=32)).replace(day=1), stop)
        stretches.append((start, end))
        start = end
    return stretches


def table_of(report: Report) -> list[tuple[Any, ...]]:
    """The differences as rows (table, tenant, day, events, counted) for people."""
    return [
        (entry.table, entry.tenant_id, entry.day.isoformat() if entry.day else "all", entry.wanted, entry.found)
        for entry in report.differences
    ]
