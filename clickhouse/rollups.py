"""The rollups: per-slot and per-day counts, always recomputed from the events, never added to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from clickhouse.connection import Connection
from clickhouse.errors import StoreUnavailableError
from clickhouse.marks import Slot, insert_marks, new_segment_id

logger = logging.getLogger(__name__)

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
INSERT INTO agent_slot
    (tenant_id, slot, agent_id, issued, failed, last_issued_ms, issued_5, issued_10, generation)
SELECT tenant_id, slot, agent, sum(issued_here), sum(failed_here), max(last_here), sum(middle), sum(late),
    {{generation:UInt64}}
FROM
(
    SELECT tenant_id, slot, counted_agent AS agent,
        countIf(success) AS issued_here, countIf(NOT success) AS failed_here,
        maxIf(toUInt64(issued_at_ms), success) AS last_here,
        countIf(success AND intDiv(issued_at_ms, 300000) % 3 = 1) AS middle,
        countIf(success AND intDiv(issued_at_ms, 300000) % 3 = 2) AS late
    FROM ({COUNTED_EVENTS.replace("{where}", "(tenant_id, toStartOfFifteenMinutes(issued_at)) IN {slots}")})
    GROUP BY tenant_id, slot, agent
    UNION ALL
    -- Zeros for agents that were here before: erased, or the other content of an event counts now.
    SELECT tenant_id, slot, agent_id, 0, 0, 0, 0, 0 FROM agent_slot
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

_NEWEST: Final = """
SELECT max(newest) FROM
(
    SELECT max(generation) AS newest FROM agent_slot WHERE (tenant_id, slot) IN {slots}
    UNION ALL SELECT max(generation) FROM tenant_slot WHERE (tenant_id, slot) IN {slots}
    UNION ALL SELECT max(generation) FROM agent_day WHERE (tenant_id, day) IN {days}
    UNION ALL SELECT max(generation) FROM tenant_day WHERE (tenant_id, day) IN {days}
)"""

# The clock itself is what is asked for here.
_NOW: Final = "SELECT toUnixTimestamp64Nano(now64(9))"

SLOTS_AT_ONCE: Final = 4_000
SLOTS_IN_A_LIST: Final = 100


class Recompute(NamedTuple):
    """What one recompute did: slots recounted, events that the rollups gained, seconds it took."""

    slots: int
    gained: int
    seconds: float


class _Statements(NamedTuple):
    """The statements of a recount, with one way to name the slots and their days."""

    newest: str
    counted: str
    agent_slot: str
    tenant_slot: str
    agent_day: str
    tenant_day: str

    @classmethod
    def over(cls, slots: str, days: str) -> _Statements:
        templates = (_NEWEST, _COUNTED, _FILL_AGENT_SLOT, _FILL_TENANT_SLOT, _FILL_AGENT_DAY, _FILL_TENANT_DAY)
        return cls(*(template.replace("{slots}", slots).replace("{days}", days) for template in templates))


_OF_STRETCH: Final = _Statements.over(
    _STRETCH.format(key="tenant_id, slot"), _STRETCH.format(key="tenant_id, toDate(slot)")
)
_OF_LIST: Final = _Statements.over(_SLOT_LIST, _DAY_LIST)


class _Chunk(NamedTuple):
    slots: Sequence[Slot]
    statements: _Statements
    keys: dict[str, Any]  # parameters that name the slots

    @classmethod
    def of(cls, slots: Sequence[Slot], stretch: dict[str, Any]) -> _Chunk:
        """`stretch` has the parameters of _STRETCH but for the last slot."""
        if len(slots) > SLOTS_IN_A_LIST:
            tenant, start = slots[-1]
            return cls(slots, _OF_STRETCH, {**stretch, "last_tenant": tenant, "last_slot": start})
        days = {(tenant, datetime.fromtimestamp(start, UTC).date()) for tenant, start in slots}
        return cls(slots, _OF_LIST, {"slots": slots, "days": sorted(days)})


class Rollups:
    """Recounts marked slots. One thread of a process calls it; several processes may, on one server.

    A generation is taken before the statement that writes it begins to read, from one clock: the store's own. So of two
    rows for one key the one of the higher generation was read later, and has seen all that landed before it was taken.
    An event's own recount takes its generation after the event has landed; whichever row wins over that one has the
    event too. Hence two processes that recount one slot at once do no harm, whatever their own clocks say.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Nobody else has the clock of an embedded store: what it has been at is known for good.
        self._generation = connection.rows(_NEWEST_GENERATION)[0][0] if connection.embedded else 0

    def recompute(
        self,
        segments: Sequence[int],
        progress: Callable[[int], None] = lambda slots: None,
        *,
        own: Collection[Slot] = (),
    ) -> Recompute:
        """Recounts every slot marked in `segments`, all of whose inserts must have landed; then closes the marks.

        Idempotent: a crash at any point leaves the marks, and with them the work, for the next call.
        `progress` hears the slots done so far. `own` are the slots that this process has marked in them: those that are
        closed already, by a process that took this one for dead, are recounted all the same. Raises StoreError.
        """
        started = time.perf_counter()
        slots = gained = 0
        missing = set(own)
        for chunk in self._marked(segments):
            gained += self._recount(chunk)
            slots += len(chunk.slots)
            missing -= {*chunk.slots}
            progress(slots)
        self.close_marks(segments)
        if missing:
            logger.warning(
                "another process took this one for dead and closed %d of its marks, which are made anew: are all "
                "clocks set?",
                len(missing),
            )
            again = new_segment_id(time.time_ns() // 1_000_000)
            insert_marks(self._connection, again, missing)
            more = self.recompute([again], lambda done: progress(slots + done))
            slots, gained = slots + more.slots, gained + more.gained
        return Recompute(slots, gained, time.perf_counter() - started)

    def marked_segments(self) -> list[int]:
        """Every segment that has open marks, of this process or of any other."""
        return [segment for (segment,) in self._connection.rows(_MARKED_SEGMENTS)]

    def close_marks(self, segments: Sequence[int]) -> None:
        """From now on the slots marked in `segments` and in no other are answered from the rollups."""
        self._connection.command(_CLOSE, {"segments": list(segments)})

    def _recount(self, chunk: _Chunk) -> int:
        if not self._connection.embedded:
            self._require_newer(chunk)
        before = self._counted(chunk)
        # In this order: what sums the slots of others too takes its generation after ours has landed.
        for statement in (
            chunk.statements.agent_slot,
            chunk.statements.tenant_slot,
            chunk.statements.agent_day,
            chunk.statements.tenant_day,
        ):
            self._fill(statement, chunk)
        return self._counted(chunk) - before

    def _require_newer(self, chunk: _Chunk) -> None:
        """Raises StoreUnavailableError while the server's clock is behind what these rollups were written at."""
        newest = self._connection.rows(chunk.statements.newest, chunk.keys)[0][0]
        behind = newest - self._now()
        if behind >= 0:
            raise StoreUnavailableError(
                f"the clock of the server was set back: rollups are {behind / 1e9:.1f} s ahead of it, and a recount "
                "would lose against them; set it right, or wait"
            )

    def _counted(self, chunk: _Chunk) -> int:
        return int(self._connection.rows(chunk.statements.counted, chunk.keys)[0][0])

    def _fill(self, statement: str, chunk: _Chunk) -> None:
        # A clock set back must not make new rows look older than the ones they replace.
        self._generation = max(self._generation + 1, self._now())
        self._connection.command(statement, {**chunk.keys, "generation": self._generation})

    def _now(self) -> int:
        """Nanoseconds since the epoch by the clock of the store."""
        return time.time_ns() if self._connection.embedded else int(self._connection.rows(_NOW)[0][0])

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
