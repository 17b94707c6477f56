"""Removal: retention and erasure, which take events away without a counter ever falling.

Each removal is written down with what it takes, then one statement deletes the events, then their rollups go, then it
is done: only then does the exporter add it to a tenant's total, and until then its own high-water mark holds the
counter. What is counted and what is deleted are the same events, because nobody writes between the two; whatever
arrives later is not touched by a mutation that was submitted before, and is counted as any late event is.

An interruption leaves the record. If the engine knows the mutation, the rest is done again, which is no work where it
was done. If it does not, nothing was deleted, and what was counted may be more by now: the record is withdrawn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from clickhouse.connection import Connection
from clickhouse.errors import StoreUnavailableError
from clickhouse.marks import ORPHAN_AFTER_SECONDS, Slot, new_segment_id
from clickhouse.rollups import OPEN_MARKS
from clickhouse.tenant import TenantId
from clickhouse.upkeep import Upkeep
from clickhouse.writer import Writer

logger = logging.getLogger(__name__)

_COLUMNS: Final = ("tenant_id", "removal_id", "agent_id", "before", "issued", "failed", "done")
# Values of `done`; the highest one counts. What one process withdraws, because the engine does not know of it yet,
# another one may just be telling the engine: then it is done all the same.
_PENDING, _WITHDRAWN, _DONE = 0, 1, 2

_OLDER_THAN: Final = """
SELECT tenant_id, sum(issued), sum(failed) FROM tenant_day FINAL
WHERE day < toDate(toDateTime({before:UInt32}, 'UTC')) GROUP BY tenant_id"""

# What the tenant's total loses: an event that came under two agents still counts under the other one.
_OF_AGENT: Final = """
SELECT countIf(now.1 = 'success') - countIf(others > 0 AND later.1 = 'success'),
    countIf(now.1 = 'failure') - countIf(others > 0 AND later.1 = 'failure')
FROM
(
    SELECT min((outcome, agent_id)) AS now, countIf(agent_id != {agent:String}) AS others,
        minIf((outcome, agent_id), agent_id != {agent:String}) AS later
    FROM events WHERE tenant_id = {tenant:String} GROUP BY issued_at, event_id
)"""

_OF_TENANT: Final = "SELECT sum(issued), sum(failed) FROM tenant_day FINAL WHERE tenant_id = {tenant:String}"

_OLD: Final = "issued_at < toDateTime({before:UInt32}, 'UTC')"
_OLD_SLOT: Final = "slot < toDateTime({before:UInt32}, 'UTC')"
_OLD_DAY: Final = "day < toDate(toDateTime({before:UInt32}, 'UTC'))"
_WHOSE_TENANT: Final = "tenant_id = {tenant:String}"
_WHOSE: Final = "tenant_id = {tenant:String} AND ({agent:String} = '' OR agent_id = {agent:String})"

_OLD_HOUR: Final = _OLD_SLOT.replace("slot", "hour", 1)
_OLD_BIN: Final = _OLD_SLOT.replace("slot", "bin", 1)
_OLD_NETWORK: Final = _OLD_SLOT.replace("slot", "last_seen", 1)
_BY_AGENT: Final = (
    "agent_slot", "agent_day", "agent_hour", "agent_waste", "agent_spread", "agent_network", "agent_habit",
    "agent_norm", "verdicts",
)  # fmt: skip
_BY_TENANT: Final = ("tenant_slot", "tenant_day", "tenant_hour", "tenant_norm")

_EVENTS_OF: Final = f"SELECT count() FROM events WHERE {_WHOSE}"
_SLOTS_OF: Final = f"SELECT DISTINCT tenant_id, toUnixTimestamp(slot) FROM agent_slot WHERE {_WHOSE}"

_UNFINISHED_REMOVALS: Final = """
SELECT tenant_id, removal_id, max(agent_id), toUnixTimestamp(max(before)), max(issued), max(failed), max(done)
FROM removals GROUP BY tenant_id, removal_id HAVING max(done) < 2"""

_NAMED_BUT_OVER: Final = """
SELECT removal_id FROM removals GROUP BY tenant_id, removal_id
HAVING max(agent_id) != '' AND (max(done) = 2 OR max(done) = 1 AND removal_id < {long_ago:UInt64})"""

_REMOVALS_BEFORE: Final = """
SELECT uniqExact(removal_id) FROM
(
    SELECT removal_id FROM removals GROUP BY tenant_id, removal_id
    HAVING max(done) = 2 AND toUnixTimestamp(max(before)) = {before:UInt32}
)"""

# Open segments with marks of what is going to be removed: here, of other processes.
_SEGMENTS_OF: Final = f"SELECT DISTINCT segment FROM ({OPEN_MARKS}) WHERE {_WHOSE_TENANT}"
_OLD_SEGMENTS: Final = f"SELECT DISTINCT segment FROM ({OPEN_MARKS}) WHERE {_OLD_SLOT}"

# Slots that still have events after a removal: they came while it ran.
_SLOTS_LEFT: Final = "SELECT DISTINCT tenant_id, toUnixTimestamp(toStartOfFifteenMinutes(issued_at)) FROM events WHERE "
_OLD_SLOTS_LEFT: Final = _SLOTS_LEFT + _OLD
_WHOSE_SLOTS_LEFT: Final = _SLOTS_LEFT + _WHOSE

_FORGET_AFTER_MS: Final = 3_600_000  # a withdrawn removal keeps the name for this long: it may yet be carried out
_FOREIGN_SECONDS: Final = 2 * ORPHAN_AFTER_SECONDS  # other processes' segments are recounted, or taken over, by then
# The removal's number stands in its statements, which the engine remembers.
_MUTATIONS: Final = """
SELECT is_done, latest_fail_reason FROM system.mutations
WHERE database = currentDatabase() AND table = {table:String} AND position(command, toString({removal:UInt64})) > 0"""

_POLL_SECONDS: Final = 0.05
_LONGEST_POLL_SECONDS: Final = 2.0


class Removed(NamedTuple):
    """One tenant's part of a removal; `agent_id` "" stands for all agents, `before` (Unix seconds) 0 for all times."""

    tenant_id: str
    removal_id: int
    agent_id: str
    before: int
    issued: int
    failed: int


class _Scope(NamedTuple):
    """Which rows of which tables go; `parameters` belong to every condition and statement."""

    events: str
    rollups: dict[str, str]  # table -> condition
    slots_left: str
    segments: str
    parameters: dict[str, Any]


class Removal:
    """Runs in the process that writes, one removal at a time. Blocking; every method raises StoreError."""

    def __init__(
        self,
        connection: Connection,
        writer: Writer,
        upkeep: Upkeep,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        detecting: threading.Lock | None = None,
    ) -> None:
        """`detecting`: held by the detector of this process while it works."""
        self._detecting = detecting or threading.Lock()
        self._clock = clock
        self._connection = connection
        self._writer = writer
        self._upkeep = upkeep
        self._sleep = sleep

    def retain(self, days: int, now: datetime) -> list[Removed]:
        """Removes the events and rollups of all UTC days before the last `days` ones (today included)."""
        self.resume()
        cutoff = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
        before = int(cutoff.timestamp())
        self._wait_for_others(_OLD_SEGMENTS, {"before": before})
        with self._upkeep.exclusive():
            # Two processes that do the same at once take away, and add to a counter, once: under one number. A later
            # one of the same day, for what came since, has another.
            number = self._connection.rows(_REMOVALS_BEFORE, {"before": before})[0][0]
            removal_id = new_segment_id(before * 1000, number)
            removed = [
                Removed(tenant, removal_id, "", before, int(issued), int(failed))
                for tenant, issued, failed in self._connection.rows(_OLDER_THAN, {"before": before})
            ]
            if removed:
                self._begin(removed)
        if removed:
            self._carry_out(removed)
        return removed

    def erase(self, tenant: TenantId, agent: str | None, now: datetime) -> Removed | None:
        """Removes every trace of a tenant, or of one agent of it, but the tenant's share in its own counters.

        None if there is nothing to remove.
        """
        self.resume()
        removal_id = new_segment_id(int(now.timestamp() * 1000))
        self._wait_for_others(_SEGMENTS_OF, {"tenant": str(tenant)})
        with self._upkeep.exclusive():
            removed = self._counted(tenant, agent, removal_id)
            if removed is None:
                return None
            self._begin([removed])
        self._carry_out([removed])
        return removed

    def preview(self, tenant: TenantId, agent: str | None) -> Removed | None:
        """What `erase` would remove; changes nothing but the rollups, which are brought up to date."""
        with self._upkeep.exclusive():
            return self._counted(tenant, agent, 0)

    def resume(self) -> int:
        """Ends what an interruption left; returns how many tenants' removals that were."""
        resumed = 0
        unfinished = self._connection.rows(_UNFINISHED_REMOVALS)
        for removal_id in sorted({row[1] for row in unfinished}):
            rows = [row for row in unfinished if row[1] == removal_id]
            parts = [Removed(*row[:-1]) for row in rows]
            is_new = any(row[-1] == _PENDING for row in rows)
            if self._mutations("events", removal_id):
                logger.info("resuming an interrupted removal of %d tenants", len(parts))
                self._carry_out(parts)
                resumed += len(parts)
            elif is_new:
                logger.info("an interrupted removal of %d tenants had not begun and is withdrawn", len(parts))
                self._record(parts, _WITHDRAWN)
                resumed += len(parts)
        # Nobody else is at work on an embedded store.
        older_than = int(self._clock() * 1000) + (1 if self._connection.embedded else -_FORGET_AFTER_MS)
        for (removal_id,) in self._connection.rows(_NAMED_BUT_OVER, {"long_ago": new_segment_id(older_than, 0)}):
            self._forget_name(removal_id)
        return resumed

    def _counted(self, tenant: TenantId, agent: str | None, removal_id: int) -> Removed | None:
        whose = {"tenant": str(tenant), "agent": agent or ""}
        if self._connection.rows(_EVENTS_OF, whose) == [(0,)]:
            return None
        statement = _OF_TENANT if agent is None else _OF_AGENT
        issued, failed = self._connection.rows(statement, whose)[0]
        return Removed(str(tenant), removal_id, agent or "", 0, max(0, int(issued)), max(0, int(failed)))

    def _begin(self, removed: Sequence[Removed]) -> None:
        """From here on it will be carried out, by whoever resumes it. Nobody may write meanwhile."""
        scope = _scope(removed[0])
        self._record(removed, _PENDING)
        self._mutate("events", f"DELETE WHERE {scope.events}", scope.parameters, removed[0].removal_id)

    def _carry_out(self, removed: Sequence[Removed]) -> None:
        """What follows once the engine has the deletion. Where it was done before, doing it again is no work."""
        first = removed[0]
        self._wait_for_mutations(["events"], first.removal_id)
        # A recount that began before the deletion would bring rollups back after they were removed.
        self._wait_for_others(_scope(first).segments, _scope(first).parameters)
        if first.agent_id:
            self._recount(_SLOTS_OF, first)  # what is left of an agent's slots belongs to others
        with self._upkeep.paused():
            # Marked before their rollups go: until the recount, after a crash too, answers come from the events.
            self._mark(_scope(first).slots_left, first)
            # What the detector has read already it would write once more, after it was deleted.
            with self._detecting:
                self._delete_rollups(first)
        # What came while its day or tenant was being removed has lost its rollups with the others'.
        self._recount(_scope(first).slots_left, first)
        if first.tenant_id and not first.before and not first.agent_id:
            self._connection.command("OPTIMIZE TABLE marks FINAL")  # forgets the tenant's closed marks
        self._record(removed, _DONE)
        if first.agent_id:
            self._forget_name(first.removal_id)

    def _recount(self, slots_of: str, entry: Removed) -> None:
        """Raises StoreUnavailableError unless all of it was recounted: what is done after it relies on that."""
        self._mark(slots_of, entry)
        with self._upkeep.exclusive():
            pass

    def _mark(self, slots_of: str, entry: Removed) -> None:
        rows = self._connection.rows(slots_of, _scope(entry).parameters)
        slots: set[Slot] = {(tenant, start) for tenant, start in rows}
        if slots:
            self._writer.mark(slots)

    def _delete_rollups(self, entry: Removed) -> None:
        """A mutation rewrites the parts at once: what was erased is gone from the disk, not hidden."""
        scope = _scope(entry)
        for table, condition in scope.rollups.items():
            self._mutate(table, f"DELETE WHERE {condition}", scope.parameters, entry.removal_id)
        self._wait_for_mutations(list(scope.rollups), entry.removal_id)

    def _mutate(self, table: str, change: str, parameters: Mapping[str, Any], removal_id: int) -> None:
        """Tells the engine, and does not wait: a client's time-out would call one that goes on failed."""
        self._connection.command(
            f"ALTER TABLE {table} {change} AND {{removal:UInt64}} = {{removal:UInt64}}",
            {**parameters, "removal": removal_id},
            mutations_sync=0,
        )

    def _mutations(self, table: str, removal_id: int) -> list[tuple[Any, ...]]:
        """(is it done, why it last failed) of each mutation of `table` for the removal, on the server that is asked."""
        return self._connection.rows(_MUTATIONS, {"table": table, "removal": removal_id})

    def _wait_for_mutations(self, tables: Sequence[str], removal_id: int) -> None:
        """Raises StoreUnavailableError when the engine cannot carry one out now; it goes on trying by itself."""
        pause = _POLL_SECONDS
        while unfinished := [
            reason for table in tables for is_done, reason in self._mutations(table, removal_id) if not is_done
        ]:
            if any(unfinished):
                raise StoreUnavailableError(f"events cannot be deleted now: {max(unfinished)[:300]}", retry_after=60)
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)

    def _wait_for_others(self, segments_of: str, parameters: Mapping[str, Any]) -> None:
        """Returns when the other processes' segments that are open now are recounted.

        Raises StoreUnavailableError if they are not after a while; of those whose process is gone this one takes care.
        """
        if self._connection.embedded:
            return
        found = {segment for (segment,) in self._connection.rows(segments_of, parameters)}
        waiting = found - self._upkeep.own_segments()
        deadline = time.monotonic() + _FOREIGN_SECONDS
        pause = _POLL_SECONDS
        while waiting:
            if time.monotonic() > deadline:
                raise StoreUnavailableError("another process does not end its recount of what is to be removed", 60)
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)
            self._upkeep.repair()
            waiting &= {segment for (segment,) in self._connection.rows(segments_of, parameters)}

    def _record(self, removed: Sequence[Removed], done: int) -> None:
        rows = [(*entry, done) for entry in removed]
        self._connection.insert("removals", _COLUMNS, list(zip(*rows, strict=True)))

    def _forget_name(self, removal_id: int) -> None:
        self._mutate("removals", "UPDATE agent_id = '' WHERE removal_id = {removal:UInt64}", {}, removal_id)
        self._wait_for_mutations(["removals"], removal_id)


def _scope(entry: Removed) -> _Scope:
    if entry.before:
        rollups = {"agent_slot": _OLD_SLOT, "tenant_slot": _OLD_SLOT, "agent_day": _OLD_DAY, "tenant_day": _OLD_DAY}
        rollups |= dict.fromkeys(("agent_hour", "tenant_hour", "agent_waste", "agent_spread"), _OLD_HOUR)
        rollups |= {"verdicts": _OLD_BIN, "agent_network": _OLD_NETWORK, "agent_habit": _OLD_DAY}
        rollups |= dict.fromkeys(("agent_norm", "tenant_norm"), _OLD_HOUR)
        return _Scope(_OLD, rollups, _OLD_SLOTS_LEFT, _OLD_SEGMENTS, {"before": entry.before})
    rollups = dict.fromkeys(_BY_AGENT, _WHOSE)
    if not entry.agent_id:
        rollups |= dict.fromkeys(_BY_TENANT, _WHOSE_TENANT)
    return _Scope(
        _WHOSE, rollups, _WHOSE_SLOTS_LEFT, _SEGMENTS_OF, {"tenant": entry.tenant_id, "agent": entry.agent_id}
    )
