"""The rollups: per-slot and per-day counts, always recomputed from the events, never added to."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from clickhouse.connection import Connection, quote_name
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

# The slots themselves, not a subquery over the marks: the engine would plan and run that several times a statement,
# for each index and once more for the rows, and a recount of a few slots consists of little else. Of the very types
# of the columns: what has to be computed from a parameter is computed for every row.
_SLOTS: Final = "{slots:Array(Tuple(String, DateTime('UTC')))}"
_DAYS: Final = "{days:Array(Tuple(String, Date))}"
_RAW_OF_SLOTS: Final = f"(tenant_id, toStartOfFifteenMinutes(issued_at)) IN {_SLOTS}"

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
    FROM ({COUNTED_EVENTS.replace("{where}", _RAW_OF_SLOTS)})
    GROUP BY tenant_id, slot, agent
    UNION ALL
    -- Zeros for agents that were here before: erased, or the other content of an event counts now.
    SELECT tenant_id, slot, agent_id, 0, 0, 0 FROM agent_slot
    WHERE (tenant_id, slot) IN {_SLOTS}
)
GROUP BY tenant_id, slot, agent
{_IN_ORDER}"""

_FILL_TENANT_SLOT: Final = f"""
INSERT INTO tenant_slot (tenant_id, slot, issued, failed, generation)
SELECT tenant_id, slot, sum(issued), sum(failed), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, slot) IN {_SLOTS}
GROUP BY tenant_id, slot
{_IN_ORDER}"""

_FILL_AGENT_DAY: Final = f"""
INSERT INTO agent_day (tenant_id, day, agent_id, issued, failed, generation)
SELECT tenant_id, toDate(slot) AS day, agent_id, sum(issued), sum(failed), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, toDate(slot)) IN {_DAYS}
GROUP BY tenant_id, day, agent_id
{_IN_ORDER}"""

_FILL_TENANT_DAY: Final = f"""
INSERT INTO tenant_day (tenant_id, day, issued, failed, last_issued_ms, generation)
SELECT tenant_id, toDate(slot) AS day, sum(issued), sum(failed), max(last_issued_ms), {{generation:UInt64}}
FROM agent_slot FINAL
WHERE (tenant_id, toDate(slot)) IN {_DAYS}
GROUP BY tenant_id, day
{_IN_ORDER}"""

_COUNTED_IN_SLOTS: Final = f"""
SELECT sum(issued + failed) FROM tenant_slot FINAL WHERE (tenant_id, slot) IN {_SLOTS}"""

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
# Of the slots' text: a server takes 128 KiB in one parameter (http_max_field_value_size).
_CHUNK_BYTES: Final = 100_000
_SLOT_BYTES: Final = 20  # without its tenant's name: ('', 1790000000),


class Recompute(NamedTuple):
    """What one recompute did: slots recounted, events that the rollups gained, seconds it took."""

    slots: int
    gained: int
    seconds: float


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
            slots += len(chunk)
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

    def _recount(self, chunk: Sequence[Slot]) -> int:
        before = self._counted(chunk)
        self._fill(_FILL_AGENT_SLOT, slots=chunk)
        # What sums slots that other processes recount too takes its generation after ours landed.
        self._wait_out_skew()
        self._fill(_FILL_TENANT_SLOT, slots=chunk)
        days = sorted({(tenant, datetime.fromtimestamp(start, UTC).date()) for tenant, start in chunk})
        self._fill(_FILL_AGENT_DAY, days=days)
        self._fill(_FILL_TENANT_DAY, days=days)
        return self._counted(chunk) - before

    def _counted(self, chunk: Sequence[Slot]) -> int:
        return int(self._connection.rows(_COUNTED_IN_SLOTS, {"slots": chunk})[0][0])

    def _fill(self, statement: str, **keys: Sequence[Any]) -> None:
        # A clock set back must not make new rows look older than the ones they replace.
        self._generation = max(self._generation + 1, time.time_ns())
        self._connection.command(statement, {**keys, "generation": self._generation})

    def _marked(self, segments: Sequence[int]) -> Iterator[Sequence[Slot]]:
        """The slots marked in `segments`, in order, as many at once as fit into a statement."""
        after, rest = ("", 0), True
        while rest:
            parameters = {"segments": list(segments), "after_tenant": after[0], "after_slot": after[1]}
            found = self._connection.rows(_MARKED_SLOTS, {**parameters, "limit": SLOTS_AT_ONCE})
            chunk = _fitting(found)
            rest = len(chunk) < len(found) or len(found) == SLOTS_AT_ONCE
            if chunk:
                after = chunk[-1]
                yield chunk

    def _wait_out_skew(self) -> None:
        if self._skew_seconds:
            self._sleep(self._skew_seconds)


def _fitting(slots: Sequence[Slot]) -> Sequence[Slot]:
    """As many of the first of `slots` as fit into a parameter; at least one."""
    ends = itertools.accumulate(len(tenant) + _SLOT_BYTES for tenant, _ in slots)
    return slots[: max(1, bisect.bisect_right(list(ends), _CHUNK_BYTES))]
