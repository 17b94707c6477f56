"""The rollups: per-slot and per-day counts, always recomputed from the events, never added to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from clickhouse.connection import Connection
from clickhouse.marks import Slot

# One event for each identity, under one content: the smallest (outcome, agent_id). Everything that counts raw
# events goes through this, so that no two answers can disagree about an event that was sent with two contents.
COUNTED_EVENTS: Final = """
    SELECT tenant_id, toStartOfFifteenMinutes(issued_at) AS slot, toUnixTimestamp64Milli(issued_at) AS issued_at_ms,
        tupleElement(min((outcome, agent_id)) AS content, 2) AS counted_agent,
        tupleElement(content, 1) = 'success' AS success
    FROM events
    WHERE {where}
    GROUP BY tenant_id, issued_at, event_id"""

# A mark that was closed twice is not 0 either: it is recounted once more, where a mark believed closed would be lost.
OPEN_MARKS: Final = "SELECT tenant_id, slot, segment FROM marks GROUP BY tenant_id, slot, segment HAVING sum(open) != 0"

# {slots} and {days} of the statements below: a stretch of the marks, or a list. The engine plans and runs a subquery
# several times a statement, and that is most of a recount of a few slots; a list of thousands would cost still more.
_STRETCH: Final = """(
        SELECT {key} FROM marks
        WHERE segment IN {{segments:Array(UInt64)}}
            AND (tenant_id, slot) > ({{after_tenant:String}}, toDateTime({{after_slot:UInt32}}, 'UTC'))
            AND (tenant_id, slot) <= ({{last_tenant:String}}, toDateTime({{last_slot:UInt32}}, 'UTC')))"""
# Of the very types of the columns: what has to be computed from a parameter is computed for every row.
_SLOT_LIST: Final = "{slots:Array(Tuple(String, DateTime('UTC')))}"
_DAY_LIST: Final = "{days:Array(Tuple(String, Date))}"

# In the statement: given beside it, the embedded engine's driver makes four statements of one.
_IN_ORDER: Final = "SETTINGS optimize_aggregation_in_order = 1"

_FILL_AGENT_SLOT: Final = f"""
INSERT INTO agent_slot (tenant_id, slot, agent_id, issued, failed, last_issued_ms, generation)
SELECT tenant_id, slot, agent, sum(issued_here), sum(failed_here), max(last_here), {{generation:UInt64}}
FROM
(
    SELECT tenant_id, slot, counted_agent AS agent,
        countIf(success) AS issued_here, countIf(NOT success) AS failed_here,
        maxIf(toUInt64(issued_at_ms), success) AS last_here
    FROM ({COUNTED_EVENTS.replace("{where}", "(tenant_id, toStartOfFifteenMinutes(issued_at)) IN {slots}")})
    GROUP BY tenant_id, slot, agent
    UNION ALL
    -- Zeros for agents that were here before: erased, or the other content of an event counts now.
    SELECT tenant_id, slot, agent_id, 0, 0, 0 FROM agent_slot
    WHERE (tenant_id, slot) IN {{slots}}
)
GROUP BY tenant_id, slot, agent
{_IN_ORDER}"""

_FILL_TENANT_SLOT: Final = f"""
INSERT INTO tenant_slot (tenant_id, slot, issued, failed, generation)
SELECT tenant_id, slot, sum(issued), sum(failed), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, slot) IN {{slots}}
GROUP BY tenant_id, slot
{_IN_ORDER}"""

_FILL_AGENT_DAY: Final = f"""
INSERT INTO agent_day (tenant_id, day, agent_id, issued, failed, generation)
SELECT tenant_id, toDate(slot) AS day, agent_id, sum(issued), sum(failed), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, toDate(slot)) IN {{days}}
GROUP BY tenant_id, day, agent_id
{_IN_ORDER}"""

_FILL_TENANT_DAY: Final = f"""
INSERT INTO tenant_day (tenant_id, day, issued, failed, last_issued_ms, generation)
SELECT tenant_id, toDate(slot) AS day, sum(issued), sum(failed), max(last_issued_ms), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, toDate(slot)) IN {{days}}
GROUP BY tenant_id, day
{_IN_ORDER}"""

_COUNTED: Final = """
SELECT sum(issued + failed) FROM tenant_slot FINAL WHERE (tenant_id, slot) IN {slots}"""

_MARKED_SLOTS: Final = """
SELECT DISTINCT tenant_id, toUnixTimestamp(slot) AS start FROM marks
WHERE segment IN {segments:Array(UInt64)}
    AND (tenant_id, slot) > ({after_tenant:String}, toDateTime({after_slot:UInt32}, 'UTC'))
ORDER BY tenant_id, slot LIMIT {limit:UInt32}"""

_MARKED_SEGMENTS: Final = f"SELECT DISTINCT segment FROM ({OPEN_MARKS}) ORDER BY segment"

_CLOSE: Final = """
INSERT INTO marks (tenant_id, slot, segment, open)
SELECT tenant_id, slot, segment, -sum(open) AS rest FROM marks WHERE segment IN {segments:Array(UInt64)}
GROUP BY tenant_id, slot, segment HAVING rest != 0"""

_NEWEST_GENERATION: Final = """
SELECT max(newest) FROM
(
    SELECT max(generation) AS newest FROM agent_slot UNION ALL SELECT max(generation) FROM tenant_slot
    UNION ALL SELECT max(generation) FROM agent_day UNION ALL SELECT max(generation) FROM tenant_day
)"""

SLOTS_AT_ONCE: Final = 4_000
SLOTS_IN_A_LIST: Final = 100


class Recompute(NamedTuple):
    """What one recompute did: slots recounted, events that the rollups gained, seconds it took."""

    slots: int
    gained: int
    seconds: float


class _Statements(NamedTuple):
    """The statements of a recount, with one way to name the slots and their days."""

    counted: str
    agent_slot: str
    tenant_slot: str
    agent_day: str
    tenant_day: str

    @classmethod
    def over(cls, slots: str, days: str) -> _Statements:
        templates = (_COUNTED, _FILL_AGENT_SLOT, _FILL_TENANT_SLOT, _FILL_AGENT_DAY, _FILL_TENANT_DAY)
        return cls(*(template.replace("{slots}", slots).replace("{days}", days) for template in templates))


_OF_STRETCH: Final = _Statements.over(
    _STRETCH.format(key="tenant_id, slot"), _STRETCH.format(key="tenant_id, toDate(slot)")
)
_OF_LIST: Final = _Statements.over(_SLOT_LIST, _DAY_LIST)


class _Chunk(NamedTuple):
    slots: int
    statements: _Statements
    keys: dict[str, Any]  # parameters that name the slots

    @classmethod
    def of(cls, slots: Sequence[Slot], stretch: dict[str, Any]) -> _Chunk:
        """`stretch` has the parameters of _STRETCH but for the last slot."""
        if len(slots) > SLOTS_IN_A_LIST:
            tenant, start = slots[-1]
            return cls(len(slots), _OF_STRETCH, {**stretch, "last_tenant": tenant, "last_slot": start})
        days = {(tenant, datetime.fromtimestamp(start, UTC).date()) for tenant, start in slots}
        return cls(len(slots), _OF_LIST, {"slots": slots, "days": sorted(days)})


class Rollups:
    """Recounts marked slots. One thread of a process calls it; several processes may, on one server.

    `skew_seconds` is how far the clocks of the processes that share a server may be apart. A row of generation g
    must contain everything that landed before g was taken; with that wait it does, whosever clock is ahead.
    """

    def __init__(
        self, connection: Connection, *, skew_seconds: float = 0.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._connection = connection
        self._skew_seconds = skew_seconds
        self._sleep = sleep
        self._generation = connection.rows(_NEWEST_GENERATION)[0][0]

    def recompute(self, segments: Sequence[int], progress: Callable[[int], None] = lambda slots: None) -> Recompute:
        """Recounts every slot marked in `segments`, all of whose inserts must have landed; then closes the marks.

        Idempotent: a crash at any point leaves the marks, and with them the work, for the next call.
        `progress` hears the slots done so far. Raises StoreError.
        """
        started = time.perf_counter()
        slots = gained = 0
        self._wait_out_skew()
        for chunk in self._marked(segments):
            gained += self._recount(chunk)
            slots += chunk.slots
            progress(slots)
        self.close_marks(segments)
        return Recompute(slots, gained, time.perf_counter() - started)

    def marked_segments(self) -> list[int]:
        """Every segment that has open marks, of this process or of any other."""
        return [segment for (segment,) in self._connection.rows(_MARKED_SEGMENTS)]

    def close_marks(self, segments: Sequence[int]) -> None:
        """From now on the slots marked in `segments` and in no other are answered from the rollups."""
        self._connection.command(_CLOSE, {"segments": list(segments)})

    def _recount(self, chunk: _Chunk) -> int:
        before = self._counted(chunk)
        self._fill(chunk.statements.agent_slot, chunk)
        # What sums slots that other processes recount too takes its generation after ours landed.
        self._wait_out_skew()
        for statement in (chunk.statements.tenant_slot, chunk.statements.agent_day, chunk.statements.tenant_day):
            self._fill(statement, chunk)
        return self._counted(chunk) - before

    def _counted(self, chunk: _Chunk) -> int:
        return int(self._connection.rows(chunk.statements.counted, chunk.keys)[0][0])

    def _fill(self, statement: str, chunk: _Chunk) -> None:
        # A clock set back must not make new rows look older than the ones they replace.
        self._generation = max(self._generation + 1, time.time_ns())
        self._connection.command(statement, {**chunk.keys, "generation": self._generation})

    def _marked(self, segments: Sequence[int]) -> Iterator[_Chunk]:
        after = ("", 0)
        while True:
            parameters = {"segments": list(segments), "after_tenant": after[0], "after_slot": after[1]}
            slots = self._connection.rows(_MARKED_SLOTS, {**parameters, "limit": SLOTS_AT_ONCE})
            if slots:
                after = slots[-1]
                yield _Chunk.of(slots, parameters)
            if len(slots) < SLOTS_AT_ONCE:
                return

    def _wait_out_skew(self) -> None:
        if self._skew_seconds:
            self._sleep(self._skew_seconds)
