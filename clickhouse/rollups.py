"""The rollups: per-slot and per-day counts, always recomputed from the events, never added to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from clickhouse.connection import Connection, quote_name

# One event for each identity, under one content: the smallest (outcome, agent_id). Everything that counts raw
# events goes through this, so that no two answers can disagree about an event that was sent with two contents.
COUNTED_EVENTS: Final = """
    SELECT tenant_id, toStartOfFifteenMinutes(issued_at) AS slot, toUnixTimestamp64Milli(issued_at) AS issued_at_ms,
        tupleElement(min((outcome, agent_id)) AS content, 2) AS counted_agent,
        tupleElement(content, 1) = 'success' AS success
    FROM events
    WHERE {where}
    GROUP BY tenant_id, issued_at, event_id"""

# A chunk is a stretch of the marked slots, named by its bounds: a list of slots would outgrow a URL.
_CHUNK: Final = """
        SELECT {key} FROM marks
        WHERE segment IN {{segments:Array(UInt64)}}
            AND (tenant_id, slot) > ({{after_tenant:String}}, toDateTime({{after_slot:UInt32}}, 'UTC'))
            AND (tenant_id, slot) <= ({{last_tenant:String}}, toDateTime({{last_slot:UInt32}}, 'UTC'))"""
_SLOTS_OF_CHUNK: Final = _CHUNK.format(key="tenant_id, slot")
_DAYS_OF_CHUNK: Final = _CHUNK.format(key="tenant_id, toDate(slot)")
_RAW_OF_CHUNK: Final = f"(tenant_id, toStartOfFifteenMinutes(issued_at)) IN ({_SLOTS_OF_CHUNK})"

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
    FROM ({COUNTED_EVENTS.replace("{where}", _RAW_OF_CHUNK)})
    GROUP BY tenant_id, slot, agent
    UNION ALL
    -- Zeros for agents that were here before: erased, or the other content of an event counts now.
    SELECT tenant_id, slot, agent_id, 0, 0, 0 FROM agent_slot
    WHERE (tenant_id, slot) IN ({_SLOTS_OF_CHUNK})
)
GROUP BY tenant_id, slot, agent
{_IN_ORDER}"""

_FILL_TENANT_SLOT: Final = f"""
INSERT INTO tenant_slot (tenant_id, slot, issued, failed, generation)
SELECT tenant_id, slot, sum(issued), sum(failed), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, slot) IN ({_SLOTS_OF_CHUNK})
GROUP BY tenant_id, slot
{_IN_ORDER}"""

_FILL_AGENT_DAY: Final = f"""
INSERT INTO agent_day (tenant_id, day, agent_id, issued, failed, generation)
SELECT tenant_id, toDate(slot) AS day, agent_id, sum(issued), sum(failed), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, toDate(slot)) IN ({_DAYS_OF_CHUNK})
GROUP BY tenant_id, day, agent_id
{_IN_ORDER}"""

_FILL_TENANT_DAY: Final = f"""
INSERT INTO tenant_day (tenant_id, day, issued, failed, last_issued_ms, generation)
SELECT tenant_id, toDate(slot) AS day, sum(issued), sum(failed), max(last_issued_ms), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, toDate(slot)) IN ({_DAYS_OF_CHUNK})
GROUP BY tenant_id, day
{_IN_ORDER}"""

_COUNTED_IN_CHUNK: Final = f"""
SELECT sum(issued + failed) FROM tenant_slot FINAL WHERE (tenant_id, slot) IN ({_SLOTS_OF_CHUNK})"""

_MARKED_SLOTS: Final = """
SELECT DISTINCT tenant_id, toUnixTimestamp(slot) AS start FROM marks
WHERE segment IN {segments:Array(UInt64)}
    AND (tenant_id, slot) > ({after_tenant:String}, toDateTime({after_slot:UInt32}, 'UTC'))
ORDER BY tenant_id, slot LIMIT {limit:UInt32}"""

_NEWEST_GENERATION: Final = """
SELECT max(newest) FROM
(
    SELECT max(generation) AS newest FROM agent_slot UNION ALL SELECT max(generation) FROM tenant_slot
    UNION ALL SELECT max(generation) FROM agent_day UNION ALL SELECT max(generation) FROM tenant_day
)"""

SLOTS_AT_ONCE: Final = 4_000


class Recompute(NamedTuple):
    """What one recompute did: slots recounted, events that the rollups gained, seconds it took."""

    slots: int
    gained: int
    seconds: float


class _Chunk(NamedTuple):
    bounds: dict[str, Any]  # parameters of _CHUNK
    slots: int


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
        """Recounts every slot marked in `segments`, all of whose inserts must have landed; then drops the marks.

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
        for segment in segments:
            self.drop_marks(segment)
        return Recompute(slots, gained, time.perf_counter() - started)

    def marked_segments(self) -> list[int]:
        """Every segment that has marks, of this process or of any other."""
        return [segment for (segment,) in self._connection.rows("SELECT DISTINCT segment FROM marks ORDER BY segment")]

    def drop_marks(self, segment: int) -> None:
        """Removes a segment's marks: from now on its slots are answered from the rollups."""
        if self._connection.cluster:
            on_cluster = f"ON CLUSTER {quote_name(self._connection.cluster)}"
            self._connection.command(f"ALTER TABLE marks_local {on_cluster} DROP PARTITION {int(segment)}")
        else:
            self._connection.command(f"ALTER TABLE marks DROP PARTITION {int(segment)}")

    def _recount(self, chunk: _Chunk) -> int:
        before = self._counted(chunk)
        self._fill(_FILL_AGENT_SLOT, chunk)
        # What sums slots that other processes recount too takes its generation after ours landed.
        self._wait_out_skew()
        for statement in (_FILL_TENANT_SLOT, _FILL_AGENT_DAY, _FILL_TENANT_DAY):
            self._fill(statement, chunk)
        return self._counted(chunk) - before

    def _counted(self, chunk: _Chunk) -> int:
        return int(self._connection.rows(_COUNTED_IN_CHUNK, chunk.bounds)[0][0])

    def _fill(self, statement: str, chunk: _Chunk) -> None:
        # A clock set back must not make new rows look older than the ones they replace.
        self._generation = max(self._generation + 1, time.time_ns())
        self._connection.command(statement, {**chunk.bounds, "generation": self._generation})

    def _marked(self, segments: Sequence[int]) -> Iterator[_Chunk]:
        after = ("", 0)
        while True:
            parameters = {"segments": list(segments), "after_tenant": after[0], "after_slot": after[1]}
            slots = self._connection.rows(_MARKED_SLOTS, {**parameters, "limit": SLOTS_AT_ONCE})
            if slots:
                after = slots[-1]
                yield _Chunk({**parameters, "last_tenant": after[0], "last_slot": after[1]}, len(slots))
            if len(slots) < SLOTS_AT_ONCE:
                return

    def _wait_out_skew(self) -> None:
        if self._skew_seconds:
            self._sleep(self._skew_seconds)
